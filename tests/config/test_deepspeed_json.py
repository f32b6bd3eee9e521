"""DeepSpeed JSON: every shipped file resolved for every machine, and what is refused, by name."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stage_options import REQUIRED_OPTIONS

from minimind.config import deepspeed_optimizers
from minimind.config.deepspeed_json import (
    SHIPPED,
    Hardware,
    find_ds_config,
    load_ds_config,
    precision,
    resolve,
)
from minimind.config.deepspeed_keys import KNOWN_KEYS, REFUSED_KEYS, SECTIONS
from minimind.config.deepspeed_schedulers import SCHEDULERS, describe_scheduler
from minimind.config.model import PRESETS, load_model_config
from minimind.config.recipe import Recipe, replace_fields, spell_option
from minimind.config.sizes import Sizes, default_sizes
from minimind.errors import ConfigError
from minimind.stages import STAGES

NAMES = sorted(path.name for path in SHIPPED.glob("*.json"))
FP16_NAMES = [name for name in NAMES if "fp16" in load_ds_config(name, {})]
CPU = Hardware("cpu", 1, "bf16")
SIZES = Sizes(256, 16, 8)

BATCH_SIZES = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
)
Resolve = Callable[..., tuple[dict[str, Any], Recipe]]


@pytest.fixture
def resolved(tmp_path: Path) -> Resolve:
    """resolved(json=…, sets=…, hardware=…, **recipe options the command line gave)."""

    def run(
        values: Any = None,
        sets: dict[str, Any] | None = None,
        hardware: Hardware = CPU,
        sizes: Sizes = SIZES,
        **given: Any,
    ) -> tuple[dict[str, Any], Recipe]:
        path = SHIPPED / "zero2.json"
        if values is not None:
            path = tmp_path / "mine.json"
            path.write_text(json.dumps(values))
        recipe = replace_fields(Recipe(), {"learning_rate": 5e-4, **given}, "test")
        ds = load_ds_config(str(path), sets or {})
        return resolve(ds, recipe, set(given), sizes, hardware, 1000)

    return run


@pytest.fixture
def deepspeed_config(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], Any]:
    """The installed DeepSpeed's own reading of a configuration."""
    monkeypatch.setitem(os.environ, "DS_ACCELERATOR", "cpu")
    from deepspeed.runtime.config import DeepSpeedConfig

    return DeepSpeedConfig


def all_values(node: Any) -> list[Any]:
    if isinstance(node, dict | list):
        children = node.values() if isinstance(node, dict) else node
        return [leaf for child in children for leaf in all_values(child)]
    return [node]


@pytest.mark.parametrize("bf16", [True, False], ids=["bf16", "no bf16"])
@pytest.mark.parametrize(
    ("name", "kind"),
    [(n, k) for n in NAMES for k in ("cpu", "gpu") if k == "gpu" or n not in FP16_NAMES],
)
@pytest.mark.parametrize("stage", STAGES)
def test_every_preset_resolves_under_every_file(stage: str, name: str, kind: str, bf16: bool):
    given = load_ds_config(name, {})
    for preset in PRESETS:
        config, sizes = load_model_config(preset), default_sizes(kind, preset)
        rates = STAGES[stage].recipe_type.learning_rates
        rate = rates.get(preset, rates[""])
        values = {"learning_rate": rate, **REQUIRED_OPTIONS.get(stage, {})}
        recipe = replace_fields(STAGES[stage].recipe_type(), values, "test")
        of_recipe = {"lr": rate, "betas": [0.9, 0.999], "eps": 1e-8}
        of_recipe["weight_decay"] = recipe.weight_decay
        of_file = {k: v for k, v in given["optimizer"]["params"].items() if v != "auto"}
        batches = set()
        for ranks in (1, 2, 8) if kind == "gpu" else (1, 2, 4):
            hardware = Hardware(kind, ranks, "bf16" if bf16 else "fp32")
            ds, after = resolve(given, recipe, set(), sizes, hardware, config.num_parameters)
            assert "auto" not in all_values(ds)
            rows = ds["train_batch_size"]
            micro = ds["train_micro_batch_size_per_gpu"]
            assert rows == micro * ds["gradient_accumulation_steps"] * ranks
            assert 1 <= micro <= sizes.micro_batch_size
            assert (after.train_batch_size, after.micro_batch_size) == (rows, micro)
            batches.add(rows)
            for key, value in of_recipe.items():
                assert ds["optimizer"]["params"][key] == of_file.get(key, value)
            assert ds["gradient_clipping"] == recipe.gradient_clipping
            assert precision(ds) == ("fp16" if name in FP16_NAMES else "bf16" if bf16 else "fp32")
        assert batches == {sizes.train_batch_size}
    assert "auto" in all_values(given), "resolving must not change what was loaded"


@pytest.mark.parametrize("name", NAMES)
def test_the_installed_deepspeed_accepts_every_file(
    name: str, deepspeed_config: Callable[[dict[str, Any]], Any]
):
    recipe = replace_fields(Recipe(), {"learning_rate": 1e-3}, "test")
    hardware = Hardware("gpu", 1, "fp16" if name in FP16_NAMES else "bf16")
    given = load_ds_config(name, {})
    ds, _ = resolve(given, recipe, set(), SIZES, hardware, 1000)
    read = deepspeed_config(ds)
    zero = given["zero_optimization"]
    assert read.zero_optimization_stage == zero["stage"]
    assert read.train_batch_size == 16
    assert read.bfloat16_config.enabled == (name not in FP16_NAMES)
    assert read.gradient_clipping == 1.0
    assert read.optimizer_params["lr"] == 1e-3
    if (bucket := zero.get("reduce_bucket_size")) is not None:
        assert read.zero_config.reduce_bucket_size == (250 if bucket == "auto" else bucket)


class Recorder(dict[str, Any]):
    """Remembers which keys were asked for."""

    def __init__(self, values: dict[str, Any], asked: set[str]) -> None:
        super().__init__(values)
        self.asked = asked

    def __copy__(self) -> Recorder:
        return Recorder(self, self.asked)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def keys(self) -> Any:
        return self


def test_known_keys_are_what_the_installed_deepspeed_reads(
    deepspeed_config: Callable[[dict[str, Any]], Any],
):
    from deepspeed.runtime.config import _REMOVED_TOP_LEVEL_CONFIG_KEYS as removed

    asked: set[str] = set()
    deepspeed_config(Recorder({"train_batch_size": 1}, asked))
    ours = {"swanlab"}
    assert asked >= KNOWN_KEYS - ours, "known here, but DeepSpeed never reads them"
    assert not KNOWN_KEYS & set(removed), "known here, but DeepSpeed removed them"
    assert not KNOWN_KEYS & set(REFUSED_KEYS)


def test_section_keys_are_what_the_installed_deepspeed_reads(
    deepspeed_config: Callable[[dict[str, Any]], Any],
):
    """A section has its keys here exactly where DeepSpeed accepts one that it does not know."""
    minimal = {
        "optimizer": {"type": "AdamW"},
        "scheduler": {"type": "WarmupLR"},
        "zero_optimization": {"stage": 1},
    }
    unchecked = set()
    for section in SECTIONS:
        values = {**minimal.get(section, {}), "no_such_key": 1}
        with contextlib.suppress(ValueError):
            deepspeed_config({"train_batch_size": 1, section: values})
            unchecked.add(section)
    assert unchecked == {section for section, keys in SECTIONS.items() if keys}
    for section in unchecked:
        asked: set[str] = set()
        values = Recorder(minimal.get(section, {}), asked)
        deepspeed_config({"train_batch_size": 1, section: values})
        assert asked >= (SECTIONS[section] or set())


def test_optimizers_and_their_parameters_are_the_installed_ones(
    deepspeed_config: Callable[[dict[str, Any]], Any],
):
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam
    from deepspeed.runtime.config import ADAM_W_MODE, DEEPSPEED_OPTIMIZERS, TORCH_ADAM_PARAM

    assert set(DEEPSPEED_OPTIMIZERS) == deepspeed_optimizers.DEEPSPEED_OPTIMIZERS.keys()
    taken = {ADAM_W_MODE, TORCH_ADAM_PARAM}
    for kind in (torch.optim.AdamW, torch.optim.Adam, FusedAdam, DeepSpeedCPUAdam):
        taken |= inspect.signature(kind.__init__).parameters.keys()
    # What DeepSpeed fills in itself, and PyTorch's Adam in disguise of AdamW.
    filled = {"self", "params", "model_params", "adamw_mode", "decoupled_weight_decay"}
    assert taken - filled == deepspeed_optimizers.ADAM_PARAMS


def test_a_file_is_found_by_path_by_name_and_without_its_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert find_ds_config("zero2.json") == find_ds_config("zero2") == SHIPPED / "zero2.json"
    (tmp_path / "zero2.json").write_text("{}")
    assert find_ds_config("zero2.json").resolve() == tmp_path / "zero2.json"


def test_a_missing_file_lists_what_there_is():
    with pytest.raises(ConfigError) as caught:
        find_ds_config("zero9.json")
    for word in ("zero9.json", *NAMES):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", ["not valid JSON"]),
        ("", ["not valid JSON"]),
        ("[]", ["one JSON object", "list"]),
        ('{"bf16": {}, "bf16": {}}', ["'bf16'", "twice"]),
        ('{"bf16": {"enabled": true, "enabled": false}}', ["'enabled'", "twice"]),
        ('{"gradient_cliping": 1}', ["'gradient_cliping'", "gradient_clipping"]),
        ('{"xyz": 1}', ["no key 'xyz'"]),
        ('{"autotuning": {"enabled": true}}', ["autotuning", "without training"]),
        ('{"bfloat16": {"enabled": true}}', ["bfloat16", "spell it bf16"]),
        ('{"activation_checkpointing": {}}', ["--set activation_checkpointing=true"]),
        ('{"nebula": {}}', ["nebula"]),
        ('{"optimizer": {"type": "AdamW", "parms": {}}}', ["optimizer", "'parms'", "params"]),
        ('{"optimizer": {"params": {}}}', ["optimizer", "type"]),
        ('{"optimizer": {"type": "AdamW", "params": []}}', ["optimizer.params", "object"]),
        ('{"optimizer": {"type": "Adamm"}}', ["optimizer.type", "'Adamm'", "adamw"]),
        (
            '{"optimizer": {"type": "AdamW", "params": {"weight_dekay": 1}}}',
            ["optimizer.params", "'weight_dekay'", "weight_decay"],
        ),
        ('{"scheduler": {"type": "WarmupLR", "parms": {}}}', ["scheduler", "'parms'"]),
        ('{"scheduler": null}', ["scheduler", "None", "object"]),
        ('{"data_types": {"grad_acum_dtype": "fp32"}}', ["data_types", "grad_accum_dtype"]),
        ('{"bf16": true}', ["bf16", "True", "object"]),
        ('{"bf16": {"enabled": "true"}}', ["bf16.enabled", "'true'"]),
        ('{"zero_optimization": 2}', ["zero_optimization", "2", "object"]),
        ('{"zero_optimization": {"stage": "2"}}', ["zero_optimization.stage", "'2'", "0 to 3"]),
        ('{"zero_optimization": {"stage": 4}}', ["zero_optimization.stage", "4", "0 to 3"]),
        ('{"gradient_allreduce_op": "sum"}', ["gradient_allreduce_op", "'sum'", "mean"]),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, words: list[str]):
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_ds_config(str(path), {})
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_set_overrides_the_file_on_purpose(resolved: Resolve):
    sets = {"zero_optimization.stage": 1, "bf16.enabled": False, "optimizer.params.lr": 0.25}
    ds, recipe = resolved(sets=sets)
    assert ds["zero_optimization"]["stage"] == 1
    assert precision(ds) == "fp32"
    assert ds["optimizer"]["params"]["lr"] == recipe.learning_rate == 0.25
    with pytest.raises(ConfigError, match=r"no key 'zero_optimisation'.*zero_optimization"):
        resolved(sets={"zero_optimisation.stage": 1})
    with pytest.raises(ConfigError, match=r"--set ds_config.gradient_clipping.x: gradient_cl"):
        resolved(sets={"gradient_clipping.x": 1})


@pytest.mark.parametrize(
    ("path", "explicit", "name", "given"),
    [
        ("optimizer.params.lr", 1e-3, "learning_rate", 2e-3),
        ("optimizer.params.betas", [0.9, 0.95], "betas", (0.9, 0.99)),
        ("optimizer.params.eps", 1e-6, "adam_eps", 1e-7),
        ("optimizer.params.weight_decay", 0.1, "weight_decay", 0.2),
        ("gradient_clipping", 0.5, "gradient_clipping", 1.0),
        ("train_batch_size", 32, "train_batch_size", 16),
        ("train_micro_batch_size_per_gpu", 4, "micro_batch_size", 2),
    ],
)
def test_an_option_and_an_explicit_value(
    resolved: Resolve, path: str, explicit: Any, name: str, given: Any
):
    """Contradicting, they are an error that says how to mean it; else the explicit value is the
    recipe's, and two that agree are fine."""
    with pytest.raises(ConfigError) as caught:
        resolved(sets={path: explicit}, **{name: given})
    mine = list(given) if isinstance(given, tuple) else given
    for word in (spell_option(name, mine), path, f"--set ds_config.{path}="):
        assert word in str(caught.value)
    kept = tuple(explicit) if isinstance(explicit, list) else explicit
    assert getattr(resolved(sets={path: explicit})[1], name) == kept
    assert getattr(resolved(sets={path: explicit}, **{name: kept})[1], name) == kept
    assert getattr(resolved(**{name: given})[1], name) == given


@pytest.mark.parametrize(
    ("path", "value", "word"),
    [
        ("optimizer.params.lr", "fast", "learning_rate"),
        ("optimizer.params.lr", -1.0, "learning_rate"),
        ("optimizer.params.betas", [0.9], "betas"),
        ("gradient_clipping", "1", "gradient_clipping"),
        ("train_batch_size", 0, "train_batch_size"),
        ("train_batch_size", 8.5, "train_batch_size"),
        ("train_micro_batch_size_per_gpu", True, "micro_batch_size"),
    ],
)
def test_an_explicit_value_is_checked(resolved: Resolve, path: str, value: Any, word: str):
    with pytest.raises(ConfigError, match=word):
        resolved(sets={path: value})


def test_what_the_file_leaves_out_is_the_recipes(resolved: Resolve):
    ds, _ = resolved({"zero_optimization": {"stage": 1}}, betas=(0.8, 0.9), gradient_clipping=0.25)
    assert ds["gradient_clipping"] == 0.25
    assert ds["optimizer"]["type"] == "AdamW"
    params = ds["optimizer"]["params"]
    assert (params["lr"], params["betas"], params["weight_decay"]) == (5e-4, [0.8, 0.9], 0.01)
    assert ds["train_batch_size"] == 16
    assert precision(ds) == "fp32"
    ds, _ = resolved({"optimizer": {"type": "Adam", "params": {"lr": 0.5}}}, weight_decay=0.3)
    assert ds["optimizer"]["params"]["weight_decay"] == 0.3
    assert ds["optimizer"]["params"]["lr"] == 0.5
    ds, _ = resolved({"optimizer": {"type": "SGD"}})
    assert ds["optimizer"]["params"] == {"lr": 5e-4}


def test_an_auto_nobody_can_fill_is_named(resolved: Resolve):
    for path in ("steps_per_print", "zero_optimization.stage3_max_live_parameters"):
        with pytest.raises(ConfigError, match=rf'{path}: "auto" is not known here; it is for bf16'):
            resolved(sets={path: "auto"})
    with pytest.raises(ConfigError, match=r"data_types.keep_in_fp32_modules\[1\]"):
        resolved(sets={"data_types.keep_in_fp32_modules": ["norm", "auto"]})


def test_precision(resolved: Resolve):
    no_bf16 = Hardware("gpu", 1, "fp16")
    both = {"fp16": {"enabled": True}, "bf16": {"enabled": True}}
    with pytest.raises(ConfigError, match="both bf16 and fp16"):
        resolved(both)
    by_device = {"fp16": {"enabled": "auto"}, "bf16": {"enabled": "auto"}}
    assert precision(resolved(by_device, hardware=no_bf16)[0]) == "fp16"
    assert precision(resolved(by_device, hardware=Hardware("gpu", 1, "bf16"))[0]) == "bf16"
    assert precision(resolved(by_device, hardware=Hardware("cpu", 1, "fp32"))[0]) == "fp32"
    # Asked for outright, bf16 stays however slow it is there.
    assert precision(resolved({"bf16": {"enabled": True}}, hardware=no_bf16)[0]) == "bf16"


@pytest.mark.parametrize(
    ("name", "ranks", "bf16", "expected"),
    [
        ("zero2", 1, True, "bf16"),
        ("zero2", 2, True, "fp32"),
        ("zero2", 1, False, "fp32"),
        ("zero0", 1, True, "fp32"),
        ("zero1", 1, True, "fp32"),
        ("zero3", 8, True, "fp32"),
        ("zero2_fp16", 1, False, "fp16"),
        ("zero2_fp16", 4, False, "fp32"),
    ],
)
def test_gradients_are_reduced_in_fp32(name: str, ranks: int, bf16: bool, expected: str):
    """But for one rank alone, which from stage 2 on has nothing to reduce."""
    given = load_ds_config(name, {"bf16.enabled": bf16})
    recipe = replace_fields(Recipe(), {"learning_rate": 1e-3}, "test")
    hardware = Hardware("gpu", ranks, "bf16")
    ds, _ = resolve(given, recipe, set(), SIZES, hardware, 1000)
    assert ds["communication_data_type"] == expected


def test_fp16_is_refused_on_a_cpu(resolved: Resolve):
    with pytest.raises(ConfigError, match=r"fp16 does not train on a CPU.*zero2.json"):
        resolved({"fp16": {"enabled": True}})
    shipped = load_ds_config("zero2_fp16.json", {})
    with pytest.raises(ConfigError, match="fp16 does not train on a CPU"):
        resolve(shipped, Recipe(learning_rate=1e-3), set(), SIZES, CPU, 1000)


def test_gradients_that_stage_1_would_add_twice_are_refused(resolved: Resolve):
    def asked(stage: int, rows: int, bf16: bool = True) -> dict[str, Any]:
        return {
            "train_batch_size": 8,
            "train_micro_batch_size_per_gpu": rows,
            "bf16": {"enabled": bf16},
            "zero_optimization": {"stage": stage},
            "data_types": {"grad_accum_dtype": "fp32"},
        }

    with pytest.raises(ConfigError, match=r"grad_accum_dtype fp32.*stage 1.*steps 4.*immediate"):
        resolved(asked(1, rows=2))
    once = asked(1, rows=2)
    once["bf16"]["immediate_grad_update"] = True
    for fine in (asked(1, rows=8), asked(2, rows=2), asked(1, rows=2, bf16=False), once):
        resolved(fine)


@pytest.mark.parametrize(
    ("name", "stage", "bf16", "why"),
    [
        ("LBFGS", 0, False, "asks for the loss anew"),
        ("SparseAdam", 0, True, "gradients here are dense"),
        ("Adafactor", 1, False, "use AdamW, or Adafactor with stage 0"),
        ("adagrad", 2, True, "weight decay and the rates of its groups"),
        ("Muon", 2, True, "loses the norms' gradients"),
        ("Adafactor", 0, True, ""),
        ("Adagrad", 0, True, ""),
        ("Muon", 1, True, ""),
        ("Muon", 2, False, ""),
    ],
)
def test_optimizers_that_deepspeed_gets_wrong_are_refused(
    resolved: Resolve, name: str, stage: int, bf16: bool, why: str
):
    asked = {
        "optimizer": {"type": name, "params": {"lr": 1e-3}},
        "bf16": {"enabled": bf16},
        "zero_optimization": {"stage": stage},
    }
    with pytest.raises(ConfigError, match=why) if why else contextlib.nullcontext():
        resolved(asked)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 1),
        ("warmup_steps", 1),
        ("min_lr_ratio", 1),
        ("scale_lr_with_batch", 1),
        # DeepSpeed's schedules give all parameter groups one rate.
        ("lr_factors", {"embed": 0.1}),
    ],
)
def test_a_scheduler_in_the_file_contradicts_flags_about_the_rate(
    resolved: Resolve, name: str, value: Any
):
    values = {"scheduler": {"type": "WarmupLR", "params": {}}}
    assert resolved(values)[0]["scheduler"] == values["scheduler"]
    with pytest.raises(ConfigError, match=rf"scheduler.*{name}"):
        resolved(values, **{name: value})


@pytest.mark.parametrize("rows", [8, 12, 16, 120, 128])
@pytest.mark.parametrize("limit", [1, 3, 4, 64])
def test_rows_are_micro_batches_times_accumulation_times_ranks(
    resolved: Resolve, rows: int, limit: int
):
    """At any number of ranks the same rows, in the largest micro-batches that fit."""
    for ranks in (r for r in range(1, 9) if rows % r == 0):
        ds, _ = resolved(sizes=Sizes(256, rows, limit), hardware=Hardware("gpu", ranks, "bf16"))
        micro = ds["train_micro_batch_size_per_gpu"]
        assert ds["train_batch_size"] == rows
        assert micro * ds["gradient_accumulation_steps"] * ranks == rows
        larger = range(micro + 1, limit + 1)
        assert micro <= limit
        assert not [m for m in larger if (rows // ranks) % m == 0]


def test_explicit_sizes_are_kept(resolved: Resolve):
    for rows, micro, ranks in itertools.product((24, 48), (2, 3), (1, 4)):
        ds, recipe = resolved(
            train_batch_size=rows, micro_batch_size=micro, hardware=Hardware("gpu", ranks, "bf16")
        )
        assert ds["train_batch_size"] == recipe.train_batch_size == rows
        assert ds["train_micro_batch_size_per_gpu"] == recipe.micro_batch_size == micro
        assert ds["gradient_accumulation_steps"] == rows // micro // ranks
    ds, _ = resolved(sets={"gradient_accumulation_steps": 2})
    assert ds["gradient_accumulation_steps"] == 2


@pytest.mark.parametrize(
    ("sets", "ranks", "words"),
    [
        ({"train_batch_size": 16}, 3, ["16", "3 ranks", "15", "18"]),
        ({"train_batch_size": 2}, 8, ["2", "8 ranks", "use 8"]),
        ({"train_batch_size": 16, "train_micro_batch_size_per_gpu": 3}, 1, ["16", "3", "whole"]),
        ({"train_batch_size": 8, "train_micro_batch_size_per_gpu": 16}, 1, ["8", "16", "whole"]),
        (
            {"train_batch_size": 16, "gradient_accumulation_steps": 3},
            1,
            ["gradient_accumulation_steps 3", "16", "1, 2, 4, 8, 16"],
        ),
    ],
)
def test_sizes_that_do_not_fit_are_named(
    resolved: Resolve, sets: dict[str, Any], ranks: int, words: list[str]
):
    with pytest.raises(ConfigError) as caught:
        resolved(sets=sets, hardware=Hardware("gpu", ranks, "bf16"))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("sets", "ranks", "found"),
    [
        ((128, None, 4), 1, (128, 32, 4)),
        ((128, None, 4), 8, (128, 4, 4)),
        ((None, 32, 4), 2, (256, 32, 4)),
        ((128, 16, None), 2, (128, 16, 4)),
        ((128, 32, 4), 1, (128, 32, 4)),
        ((None, None, 4), 2, (64, 8, 4)),
        ((16, None, 2), 1, (16, 8, 2)),
        # Larger than the table's micro-batch: it was asked for.
        ((128, None, 1), 1, (128, 128, 1)),
    ],
)
@pytest.mark.parametrize("left_out", ["auto", "absent"])
def test_any_two_batch_sizes_give_the_third(
    resolved: Resolve,
    sets: tuple[int | None, ...],
    ranks: int,
    found: tuple[int, ...],
    left_out: str,
):
    values: dict[str, Any] = dict(zip(BATCH_SIZES, sets, strict=True))
    values = {key: value or "auto" for key, value in values.items() if value or left_out == "auto"}
    ds, recipe = resolved(values, sizes=Sizes(256, 16, 8), hardware=Hardware("gpu", ranks, "bf16"))
    assert tuple(ds[key] for key in BATCH_SIZES) == found
    assert (recipe.train_batch_size, recipe.micro_batch_size) == found[:2]


def test_a_flag_is_one_of_the_two(resolved: Resolve):
    ds, _ = resolved({"gradient_accumulation_steps": 4}, train_batch_size=64)
    assert [ds[key] for key in BATCH_SIZES] == [64, 16, 4]
    ds, _ = resolved({"gradient_accumulation_steps": 4}, micro_batch_size=2)
    assert [ds[key] for key in BATCH_SIZES] == [8, 2, 4]
    with pytest.raises(ConfigError, match=r"= 4; leave one of the three out"):
        resolved({"gradient_accumulation_steps": 2}, train_batch_size=64, micro_batch_size=16)


@pytest.mark.parametrize("value", [0, -1, 2.0, "4", True])
def test_an_accumulation_that_is_none_is_named(resolved: Resolve, value: Any):
    with pytest.raises(ConfigError, match=r"gradient_accumulation_steps is .*whole number above 0"):
        resolved({"gradient_accumulation_steps": value})


@pytest.mark.parametrize(
    ("type", "kept"),
    [
        ("SGD", {"lr", "weight_decay"}),
        ("RMSprop", {"lr", "weight_decay"}),
        ("Lion", {"lr", "weight_decay"}),
        ("Muon", {"lr", "weight_decay"}),
        ("Adam", {"lr", "betas", "eps", "weight_decay", "torch_adam", "fused"}),
    ],
)
def test_another_type_of_optimizer_gets_the_parameters_it_takes(
    resolved: Resolve, type: str, kept: set[str]
):
    ds, _ = resolved(sets={"optimizer.type": type, "zero_optimization.stage": 1})
    assert ds["optimizer"]["params"].keys() == kept
    assert ds.get("zero_allow_untested_optimizer", False) == (type != "Adam")


def test_parameters_that_an_optimizer_does_not_take_are_named(resolved: Resolve):
    with pytest.raises(ConfigError, match=r"--set betas=.*the optimizer SGD has no betas.*takes"):
        resolved(sets={"optimizer.type": "SGD"}, betas=(0.9, 0.9))
    with pytest.raises(ConfigError, match=r"'betas': SGD takes dampening"):
        resolved(sets={"optimizer.type": "SGD", "optimizer.params.betas": [0.9, 0.9]})
    ds, _ = resolved(sets={"optimizer.type": "SGD", "optimizer.params.momentum": 0.9})
    assert ds["optimizer"]["params"]["momentum"] == 0.9
    ds, _ = resolved(sets={"optimizer.type": "Lion"}, betas=(0.9, 0.9))
    assert ds["optimizer"]["params"]["betas"] == [0.9, 0.9]
    for given, meant in (("sgd", "SGD"), ("Adamm", "adam")):
        with pytest.raises(ConfigError, match=rf"optimizer.type is '{given}' \(did you.*{meant}"):
            resolved(sets={"optimizer.type": given})


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"type": "WarmupLr"}, ["'WarmupLr' (did you mean WarmupLR", "lr_scheduler"]),
        ({"type": "WarmupLR", "params": {"warmup_steps": 3}}, ["did you mean warmup_num_steps"]),
        ({"type": "WarmupDecayLR"}, ["needs total_num_steps", "--set ds_config.scheduler.params."]),
        ({"type": "WarmupLR", "params": {"warmup_num_steps": 0}}, ["warmup_num_steps is 0"]),
        ({"type": "WarmupLR", "params": {"warmup_max_lr": "fast"}}, ["'fast'", "a number"]),
        (
            {"type": "WarmupDecayLR", "params": {"total_num_steps": "9"}},
            ["total_num_steps is '9'", "whole number"],
        ),
        ({"type": "StepLR", "params": {"step": 3}}, ["'step' (did you mean step_size?)"]),
    ],
)
def test_a_schedule_that_is_none_is_named(
    resolved: Resolve, section: dict[str, Any], words: list[str]
):
    with pytest.raises(ConfigError) as caught:
        resolved(sets={"scheduler": section})
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", ["WarmupLR", "WarmupDecayLR", "WarmupCosineLR"])
@pytest.mark.parametrize("least", [0.0, 5e-4])
def test_the_banner_knows_deepspeeds_schedules(name: str, least: float):
    from deepspeed.runtime import lr_schedules

    params: dict[str, Any] = {"warmup_num_steps": 5}
    params |= {} if name == "WarmupLR" else {"total_num_steps": 20}
    key = "warmup_min_ratio" if name == "WarmupCosineLR" else "warmup_min_lr"
    params |= {key: least} if least else {}
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    schedule = getattr(lr_schedules, name)(optimizer, **params)
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        schedule.step()
    said = describe_scheduler({"type": name, "params": params}, 0.5)
    assert f"{max(rates):.2e} peak, 5 warm-up steps" in said
    idle = [step for step, rate in enumerate(rates, 1) if rate == 0 and step < 20]
    assert ("steps 1 and 2 have rate 0" in said) == (idle == [1, 2])
    assert ("step 1 has rate 0" in said) == (idle == [1])
    taken = inspect.signature(getattr(lr_schedules, name).__init__).parameters.keys()
    assert taken - {"self", "optimizer"} == SCHEDULERS[name]


def test_overlap_and_pinning_follow_the_hardware(resolved: Resolve):
    def auto(kind: str, ranks: int) -> tuple[bool, bool]:
        sets = {"zero_optimization.offload_optimizer": {"device": "cpu", "pin_memory": "auto"}}
        ds, _ = resolved(sets=sets, hardware=Hardware(kind, ranks, "bf16"))
        zero = ds["zero_optimization"]
        return zero["overlap_comm"], zero["offload_optimizer"]["pin_memory"]

    assert auto("gpu", 1) == (False, True)
    assert auto("gpu", 2) == (True, True)
    assert auto("cpu", 2) == (False, False)


def test_one_rank_alone_reduces_its_buckets_in_place(resolved: Resolve):
    for ranks in (1, 2):
        ds, _ = resolved(hardware=Hardware("gpu", ranks, "bf16"))
        assert ds["zero_optimization"]["reduce_scatter"] == (ranks > 1)


@pytest.mark.parametrize("name", NAMES)
def test_no_file_times_steps_as_deepspeed_does(
    name: str, deepspeed_config: Callable[[dict[str, Any]], Any]
):
    assert load_ds_config(name, {})["timers"] == {"throughput": {"enabled": False}}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, {"enabled": False}),
        ({}, {"enabled": False}),
        ({"throughput": {"enabled": True}}, {"enabled": True}),
        ({"throughput": {"synchronized": False}}, {"synchronized": False}),
    ],
)
def test_nor_does_a_file_that_does_not_ask_for_it(
    resolved: Resolve, given: dict[str, Any] | None, expected: dict[str, Any]
):
    ds, _ = resolved({} if given is None else {"timers": given})
    assert ds["timers"]["throughput"] == expected


@pytest.mark.parametrize("given", [{}, {"check_grad_overflow": True}])
def test_each_gradient_of_bf16_is_looked_at_only_where_asked(
    resolved: Resolve, given: dict[str, bool]
):
    ds, _ = resolved({"bf16": {"enabled": True, **given}})
    assert ds["bf16"]["check_grad_overflow"] == bool(given)
    assert "bf16" not in resolved({})[0]


CHOSEN = {"torch_adam": True, "fused": True}


@pytest.mark.parametrize("type", ["Adam", "AdamW", "adamw"])
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, CHOSEN),
        ({"weight_decay": 0.1}, CHOSEN),
        ({"torch_adam": False}, {"torch_adam": False}),
        ({"torch_adam": True}, {"torch_adam": True}),
        ({"fused": False}, {"torch_adam": True, "fused": False}),
        ({"foreach": True}, {"torch_adam": True, "foreach": True}),
        ({"bias_correction": True}, {"bias_correction": True}),
    ],
)
def test_an_adam_is_pytorchs_unless_another_is_asked_for(
    resolved: Resolve, type: str, given: dict[str, Any], expected: dict[str, Any]
):
    ds, _ = resolved({"optimizer": {"type": type, "params": given}})
    others = {"lr", "betas", "eps", "weight_decay"}
    found = {k: v for k, v in ds["optimizer"]["params"].items() if k not in others}
    assert found == expected


def test_an_adam_whose_states_are_on_the_cpu_is_deepspeeds(resolved: Resolve):
    for device, expected in (("cpu", None), ("none", True)):
        zero = {"stage": 2, "offload_optimizer": {"device": device}}
        for section in ({"optimizer": {"type": "AdamW"}}, {}):
            ds, _ = resolved({"zero_optimization": zero, **section})
            assert ds["optimizer"]["params"].get("torch_adam") is expected

"""DeepSpeed JSON: found, overridden, completed from the recipe, and refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from resolved_json import NAMES, Resolve

from minimind.config.deepspeed_json import (
    SHIPPED,
    Hardware,
    find_ds_config,
    load_ds_config,
    precision,
)
from minimind.config.recipe import spell_option
from minimind.errors import ConfigError


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
        ('{"bf16": {}, "bf16": {}}', ['"bf16"', "twice"]),
        ('{"bf16": {"enabled": true, "enabled": false}}', ['"enabled"', "twice"]),
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


def test_fp16_is_refused_on_a_cpu(resolved: Resolve):
    with pytest.raises(ConfigError, match=r"fp16 does not train on a CPU.*zero2.json"):
        resolved({"fp16": {"enabled": True}})


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

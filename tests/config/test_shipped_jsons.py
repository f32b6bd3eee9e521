"""The shipped DeepSpeed JSONs: each resolves for every preset, stage and machine, and DeepSpeed
accepts it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from resolved_json import NAMES, SIZES
from stage_options import REQUIRED_OPTIONS

from minimind.config.deepspeed_json import Hardware, load_ds_config, precision, resolve
from minimind.config.model import PRESETS, load_model_config
from minimind.config.recipe import Recipe, replace_fields
from minimind.config.sizes import default_sizes
from minimind.stages import STAGES

FP16_NAMES = [name for name in NAMES if "fp16" in load_ds_config(name, {})]


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


@pytest.mark.parametrize("name", NAMES)
def test_no_file_times_steps_as_deepspeed_does(name: str):
    assert load_ds_config(name, {})["timers"] == {"throughput": {"enabled": False}}

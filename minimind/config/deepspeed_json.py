"""Finds and checks a DeepSpeed JSON, and replaces every "auto" by a value: DeepSpeed itself never
sees the word."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from minimind.config.batch_sizes import resolve_batch
from minimind.config.deepspeed_faults import check_faults
from minimind.config.deepspeed_keys import check_keys
from minimind.config.deepspeed_optimizers import (
    OPTIMIZER_PARAMS,
    choose_torch_adam,
    fill_optimizer,
    offloads_optimizer,
    optimizer_type,
)
from minimind.config.deepspeed_schedulers import contradicting
from minimind.config.json_file import no_duplicates, read_json_fields
from minimind.config.recipe import Recipe, replace_fields, spell_option
from minimind.config.shipped import find_json, shipped_folder
from minimind.config.sizes import Sizes
from minimind.errors import ConfigError

SHIPPED = shipped_folder("ds_configs")
"""The folder of the shipped JSONs."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """Describes the hardware that the values for "auto" depend on."""

    device_kind: str
    """"cpu" or "gpu"."""
    world_size: int
    precision: str
    """The precision that "auto" stands for: bf16, fp16 or fp32."""


_RECIPE_PATHS: dict[str, str] = {
    "optimizer": "optimizer.type",
    **{option: f"optimizer.params.{key}" for option, key in OPTIMIZER_PARAMS.items()},
    "gradient_clipping": "gradient_clipping",
    "train_batch_size": "train_batch_size",
    "micro_batch_size": "train_micro_batch_size_per_gpu",
}
"""Recipe options that the DeepSpeed JSON may set too, with their keys there."""


def find_ds_config(name: str) -> Path:
    """Finds a DeepSpeed JSON by its path, else in SHIPPED by its name. Raises ConfigError."""
    return find_json(name, SHIPPED, "--ds_config")


def load_ds_config(name: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """Reads a DeepSpeed JSON, applies `overrides` by dotted key, and checks its keys. Raises
    ConfigError."""
    path = find_ds_config(name)
    values = read_json_fields(path, object_pairs_hook=no_duplicates)
    for dotted, value in overrides.items():
        _put(values, dotted, value)
    check_keys(values, str(path))
    return values


def resolve(
    ds_config: dict[str, Any],
    recipe: Recipe,
    given: set[str],
    sizes: Sizes,
    hardware: Hardware,
    num_trained: int,
    num_frozen: int = 0,
) -> tuple[dict[str, Any], Recipe]:
    """Replaces every "auto" by the recipe's value, and recipe options by the JSON's explicit
    values.

    `given` names the recipe options set on the command line. Raises ConfigError for one that
    contradicts an explicit value, for batch sizes that do not fit, and for an "auto" that has no
    value. Missing values of clipping and of the optimizer come from the recipe too.
    """
    ds = copy.deepcopy(ds_config)
    _check_scheduler(ds, given)
    _complete(ds, recipe, given)
    explicit: dict[str, Any] = {}
    for name, path in _RECIPE_PATHS.items():
        value = _get(ds, path)
        if value is None or value == "auto":
            continue
        mine = getattr(recipe, name)
        mine = list(mine) if isinstance(mine, tuple) else mine
        if name in given and mine != value:
            raise ConfigError(
                f"{spell_option(name, mine)} contradicts {path} {value} of the DeepSpeed JSON; add "
                f"--set ds_config.{path}={json.dumps(mine)} to override that on purpose"
            )
        explicit[name] = value
    recipe = replace_fields(recipe, explicit, "the DeepSpeed JSON")
    recipe.check()
    recipe = resolve_batch(ds, recipe, sizes, hardware.world_size)
    weights = _Weights(num_trained, num_frozen)
    for path, fill in _AUTO.items():
        if _get(ds, path) == "auto":
            _put(ds, path, fill(recipe, hardware, weights))
    _resolve_precision(ds, hardware)
    _resolve_communication(ds, hardware)
    check_faults(ds, zero_stage(ds), precision(ds), recipe.clip_value)
    if recipe.max_steps is not None:
        ds = with_total_steps(ds, recipe.max_steps)
    for path, value in _walk(ds):
        if value == "auto" and path != _TOTAL_STEPS:
            raise ConfigError(
                f'{path}: "auto" is not known here; it is for {", ".join(sorted(_AUTO))}, '
                f"{_TOTAL_STEPS}, communication_data_type and the three batch sizes"
            )
    return ds, recipe


def with_total_steps(ds: dict[str, Any], num_steps: int) -> dict[str, Any]:
    """Gives a resolved JSON in which the scheduler's "auto" number of steps is filled in. Without
    max_steps it follows from the data, which is read later than the JSON."""
    if _get(ds, _TOTAL_STEPS) != "auto":
        return ds
    ds = copy.deepcopy(ds)
    _put(ds, _TOTAL_STEPS, num_steps)
    return ds


_TOTAL_STEPS = "scheduler.params.total_num_steps"


def _complete(ds: dict[str, Any], recipe: Recipe, given: set[str]) -> None:
    """Sets missing values to "auto", so that every option of the recipe has an effect."""
    optimizer = ds.setdefault("optimizer", {})
    optimizer["type"] = optimizer_type(ds, recipe, given)
    optimizer.setdefault("params", {})
    if not offloads_optimizer(ds):
        choose_torch_adam(optimizer)
    fill_optimizer(optimizer, recipe, given)
    if optimizer["type"].lower() not in ("adam", "adamw"):
        # DeepSpeed calls every optimizer but its own untested; tests/engine/test_optimizer_steps.py
        # tests them.
        ds.setdefault("zero_allow_untested_optimizer", True)
    for path in _RECIPE_PATHS.values():
        if _get(ds, path) is None and not path.startswith("optimizer"):
            _put(ds, path, "auto")
    # DeepSpeed's own timer waits for the device twice in each micro-batch unless it is turned off.
    ds.setdefault("timers", {}).setdefault("throughput", {"enabled": False})
    if "bf16" in ds:  # it checks each gradient and waits for the device; the norm shows the same
        ds["bf16"].setdefault("check_grad_overflow", False)


class _Weights(NamedTuple):
    trained: int
    frozen: int


_Fill = Callable[[Recipe, Hardware, _Weights], Any]
_AUTO: dict[str, _Fill] = {
    "gradient_clipping": lambda r, h, w: r.gradient_clipping,
    "optimizer.params.lr": lambda r, h, w: r.learning_rate,
    "optimizer.params.betas": lambda r, h, w: list(r.betas),
    "optimizer.params.eps": lambda r, h, w: r.adam_eps,
    "optimizer.params.weight_decay": lambda r, h, w: r.weight_decay,
    # PyTorch's fused AdamW compiles nothing; DeepSpeed's own takes up to 70 s the first time.
    "optimizer.params.torch_adam": lambda r, h, w: True,
    "optimizer.params.fused": lambda r, h, w: True,
    # Where the device is the CPU, offloaded states need no special optimizer.
    "zero_force_ds_cpu_optimizer": lambda r, h, w: False,
    "scheduler.params.warmup_min_lr": lambda r, h, w: 0.0,
    "scheduler.params.warmup_max_lr": lambda r, h, w: r.learning_rate,
    "scheduler.params.warmup_num_steps": lambda r, h, w: max(r.warmup_steps, 1),
    "scheduler.params.warmup_min_ratio": lambda r, h, w: 0.0,
    "scheduler.params.cos_min_ratio": lambda r, h, w: r.min_lr_ratio,
    "bf16.enabled": lambda r, h, w: h.precision == "bf16",
    "fp16.enabled": lambda r, h, w: h.precision == "fp16",
    # Overlapped reduction needs two buckets, and can only overlap with what comes after a bucket is
    # full. DeepSpeed's default buckets are 1 GB.
    "zero_optimization.reduce_bucket_size": lambda r, h, w: max(w.trained // 4, 1),
    "zero_optimization.allgather_bucket_size": lambda r, h, w: w.trained,
    # Overlap synchronises the device in every backward, which gains nothing with one rank.
    "zero_optimization.overlap_comm": lambda r, h, w: h.world_size > 1 and h.device_kind == "gpu",
    # This copies each bucket to a new one and back, to find out which rank gets what.
    "zero_optimization.reduce_scatter": lambda r, h, w: h.world_size > 1,
    "zero_optimization.offload_optimizer.device": lambda r, h, w: "none",
    "zero_optimization.offload_optimizer.pin_memory": lambda r, h, w: h.device_kind == "gpu",
    "zero_optimization.offload_param.device": lambda r, h, w: "none",
    "zero_optimization.offload_param.pin_memory": lambda r, h, w: h.device_kind == "gpu",
    # Checkpoints gather fp32 weights themselves.
    "zero_optimization.stage3_gather_16bit_weights_on_model_save": lambda r, h, w: False,
    "zero_optimization.stage3_prefetch_bucket_size": lambda r, h, w: sum(w) // 10,
    "zero_optimization.stage3_param_persistence_threshold": lambda r, h, w: 10_000,
}


def _resolve_precision(ds: dict[str, Any], hardware: Hardware) -> None:
    bf16 = bool((ds.get("bf16") or {}).get("enabled"))
    fp16 = bool((ds.get("fp16") or {}).get("enabled"))
    if bf16 and fp16:
        raise ConfigError(
            "the DeepSpeed JSON enables both bf16 and fp16: choose one, as with "
            "--set ds_config.fp16.enabled=false"
        )
    if fp16 and hardware.device_kind == "cpu":
        raise ConfigError("fp16 does not train on a CPU: use a JSON with bf16, as zero2.json")


def _resolve_communication(ds: dict[str, Any], hardware: Hardware) -> None:
    """Chooses fp32 for reducing gradients, so that two ranks take the same steps as one. A single
    rank reduces nothing from stage 2 on, so there its buckets keep their precision."""
    if ds.get("communication_data_type") == "auto":
        is_alone = hardware.world_size == 1 and zero_stage(ds) >= 2
        ds["communication_data_type"] = precision(ds) if is_alone else "fp32"


def _check_scheduler(ds: dict[str, Any], given: set[str]) -> None:
    if "scheduler" not in ds:
        return
    if clash := contradicting(ds["scheduler"], given):
        raise ConfigError(
            f"the DeepSpeed JSON has its own scheduler, which contradicts {', '.join(clash)}: "
            "leave that out, or take the scheduler out of the JSON"
        )


def precision(ds: Mapping[str, Any]) -> str:
    """Gives the precision of a resolved JSON: bf16, fp16 or fp32."""
    for name in ("bf16", "fp16"):
        if (ds.get(name) or {}).get("enabled"):
            return name
    return "fp32"


def zero_stage(ds: Mapping[str, Any]) -> int:
    return int((ds.get("zero_optimization") or {}).get("stage", 0))


def _get(values: dict[str, Any], dotted: str) -> Any:
    node: Any = values
    for key in dotted.split("."):
        if not isinstance(node, dict) or key not in node:
            return None
        node = node[key]
    return node


def _put(values: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    node = values
    for key in parents:
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set ds_config.{dotted}: {key} is not an object")
    node[last] = value


def _walk(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _walk(value, f"{path}.{key}" if path else key)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _walk(value, f"{path}[{index}]")
    else:
        yield path, node

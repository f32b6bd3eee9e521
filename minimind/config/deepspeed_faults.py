"""Refuses options that DeepSpeed 0.19.8 accepts, but with which it trains otherwise than plain
PyTorch.

Each difference was seen by comparing steps with PyTorch's. tests/engine/test_optimizer_steps.py
compares the options that are not refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minimind.config.deepspeed_optimizers import is_muon, offloads_optimizer
from minimind.errors import ConfigError

_OPTIMIZERS: dict[str, tuple[int, str]] = {
    "lbfgs": (0, "it asks for the loss anew within a step"),
    "sparseadam": (0, "the gradients here are dense"),
    "adafactor": (1, "ZeRO flattens the matrices whose rows it needs"),
    "adagrad": (
        1,
        "DeepSpeed makes it anew there, without the weight decay and the rates of its groups",
    ),
}
"""By an optimizer's lower-case name: the first ZeRO stage at which it trains wrongly, and why."""


def check_faults(ds: Mapping[str, Any], stage: int, precision: str, clip_value: float) -> None:
    """Raises ConfigError for options with which a resolved JSON of this ZeRO stage and precision
    would train wrongly."""
    name = ds["optimizer"]["type"]
    wrong_from, why = _OPTIMIZERS.get(name.lower(), (None, ""))
    if wrong_from is not None and stage >= wrong_from:
        other = f", or {name} with stage 0" if wrong_from else ""
        raise ConfigError(
            f"optimizer.type {name} with zero_optimization.stage {stage} and {precision}: {why}; "
            f"use AdamW{other}"
        )
    if is_muon(name) and offloads_optimizer(ds):
        raise ConfigError(
            "optimizer.type Muon with zero_optimization.offload_optimizer: its matrix products "
            "would run on the CPU; use AdamW, or a JSON that keeps the states on the GPU, as "
            "zero2.json"
        )
    _check_accumulation(ds, stage, precision)
    if clip_value:
        _check_clip_value(ds, stage, precision, clip_value)


def _check_accumulation(ds: Mapping[str, Any], stage: int, precision: str) -> None:
    accumulation = ds["gradient_accumulation_steps"]
    is_wide = (ds.get("data_types") or {}).get("grad_accum_dtype") == "fp32"
    if not is_wide or precision != "bf16" or stage != 1 or accumulation == 1:
        return
    if ds["bf16"].get("immediate_grad_update") is not True:
        raise ConfigError(
            "data_types.grad_accum_dtype fp32 with zero_optimization.stage 1, bf16 and "
            f"gradient_accumulation_steps {accumulation}: DeepSpeed adds the gradients of earlier "
            "micro-batches several times there; set bf16.immediate_grad_update to true, as the "
            "shipped files do, or use stage 2"
        )


def _check_clip_value(ds: Mapping[str, Any], stage: int, precision: str, clip_value: float) -> None:
    if offloads_optimizer(ds):
        raise ConfigError(
            f"clip_value {clip_value} with zero_optimization.offload_optimizer: DeepSpeed takes "
            "the norm before it has the gradients of the whole step; set clip_value=0, or take a "
            "JSON that keeps the optimizer's states on the GPU, as zero2.json"
        )
    if stage == 0 and precision == "fp16":
        raise ConfigError(
            f"clip_value {clip_value} with zero_optimization.stage 0 and fp16: it would hide the "
            "overflow that loss scaling looks for; use stage 2, as zero2_fp16.json"
        )

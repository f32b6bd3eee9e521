"""Lists the learning-rate schedulers that a DeepSpeed JSON may name, and describes their effect on
a run."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch

from minimind.config.deepspeed_optimizers import subclasses_in
from minimind.config.spelling import did_you_mean
from minimind.errors import ConfigError

_WARMUP = frozenset({"last_batch_iteration", "warmup_num_steps", "warmup_type"})
_RANGE = frozenset({"warmup_max_lr", "warmup_min_lr"})
SCHEDULERS: dict[str, frozenset[str] | None] = {
    "LRRangeTest": None,
    "OneCycle": None,
    "WarmupLR": _WARMUP | _RANGE,
    "WarmupDecayLR": _WARMUP | _RANGE | {"total_num_steps"},
    "WarmupCosineLR": _WARMUP | {"cos_min_ratio", "total_num_steps", "warmup_min_ratio"},
}
"""DeepSpeed's schedulers; of those that warm up, their parameters."""
_WARMING = tuple(name for name, params in SCHEDULERS.items() if params)
_FOLLOWING = {
    "learning_rate": "warmup_max_lr",
    "warmup_steps": "warmup_num_steps",
    "min_lr_ratio": "cos_min_ratio",
}
"""For each recipe option, the scheduler parameter that takes its value where it is "auto"."""


def check_scheduler(section: dict[str, Any], origin: str) -> None:
    """Raises ConfigError for an unknown scheduler type and for parameters that it does not take."""
    name, params = section["type"], section.get("params", {})
    torchs = subclasses_in(torch.optim.lr_scheduler, torch.optim.lr_scheduler.LRScheduler)
    if name not in SCHEDULERS and name not in torchs:
        raise ConfigError(
            f"{origin}: scheduler.type is {name!r}{did_you_mean(name, [*SCHEDULERS, *torchs])}; it "
            f"must be one of DeepSpeed's ({', '.join(SCHEDULERS)}) or of torch.optim.lr_scheduler"
        )
    if name in SCHEDULERS:
        taken = SCHEDULERS[name]
    else:
        parameters = inspect.signature(torchs[name].__init__).parameters
        taken = frozenset(parameters) - {"self", "optimizer"}
    if taken is not None and (unknown := sorted(params.keys() - taken)):
        raise ConfigError(
            f"{origin}: scheduler.params knows no key {unknown[0]!r}"
            f"{did_you_mean(unknown[0], taken)}: {name} takes {', '.join(sorted(taken))}"
        )
    if name not in _WARMING:
        return
    if "total_num_steps" not in params and "total_num_steps" in (taken or ()):
        raise ConfigError(
            f"{origin}: the scheduler {name} needs total_num_steps, the optimizer steps of the "
            "whole run: --set ds_config.scheduler.params.total_num_steps=N"
        )
    _check_values(params, origin)


def _check_values(params: dict[str, Any], origin: str) -> None:
    for key in ("warmup_num_steps", "total_num_steps"):
        steps = params.get(key, 1)
        whole = isinstance(steps, int) and not isinstance(steps, bool)
        if steps != "auto" and not (whole and steps > 0):
            raise ConfigError(
                f"{origin}: scheduler.params.{key} is {steps!r}; it must be a whole number above 0"
            )
    for key in ("warmup_min_lr", "warmup_max_lr", "warmup_min_ratio", "cos_min_ratio"):
        value = params.get(key, 0.0)
        values = value if isinstance(value, list) else [value]
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        if value not in ("auto", None) and not numbers:
            raise ConfigError(f"{origin}: scheduler.params.{key} is {value!r}; it must be a number")


def contradicting(section: dict[str, Any], given: Iterable[str]) -> list[str]:
    """Gives the options in `given` that the JSON's scheduler would ignore."""
    params = section.get("params", {})
    about_rates = {*_FOLLOWING, "scale_lr_with_batch", "lr_factors"}
    follows = {name for name, key in _FOLLOWING.items() if params.get(key) == "auto"}
    if section["type"] == "WarmupCosineLR":  # its peak is the optimizer's rate
        follows.add("learning_rate")
    return sorted(set(given) & about_rates - follows)


def check_length(section: dict[str, Any], learning_rate: float, num_steps: int) -> None:
    """Raises ConfigError where the scheduler of a resolved JSON does not fit a run of `num_steps`
    steps. `learning_rate` is the optimizer's."""
    name, params = section["type"], section.get("params") or {}
    if name not in _WARMING:
        return
    if not any(_numbers(_peak(section, learning_rate))):
        raise ConfigError(
            f"the scheduler {name} of the DeepSpeed JSON has a peak of 0: nothing would be learned"
        )
    warmup = _warmup(params)
    if warmup >= num_steps:
        raise ConfigError(
            f"the scheduler {name} of the DeepSpeed JSON warms up for {warmup:,} steps, and the "
            f"run has {num_steps:,}: set scheduler.params.warmup_num_steps below that, or to "
            '"auto", or train longer'
        )
    total = params.get("total_num_steps", num_steps)
    if total < num_steps:
        raise ConfigError(
            f"scheduler.params.total_num_steps is {total:,}, and the run has {num_steps:,} steps: "
            'those beyond it would learn at the end of the schedule; set it to "auto", or train '
            f"for --max_steps {total}"
        )


def describe_scheduler(section: dict[str, Any], learning_rate: float) -> str:
    """Describes the scheduler of a resolved JSON for the banner. `learning_rate` is the
    optimizer's."""
    name, params = section["type"], section.get("params") or {}
    if name not in _WARMING:
        return f"{name} of the DeepSpeed JSON"
    peak = ", ".join(f"{rate:.2e}" for rate in _numbers(_peak(section, learning_rate)))
    text = f"{name} of the DeepSpeed JSON, {peak} peak, {_warmup(params)} warm-up steps"
    if total := params.get("total_num_steps"):
        text += f", {total:,} steps in all"
    # DeepSpeed counts from one step late: steps 1 and 2 both get the rate of step 0.
    if name == "WarmupCosineLR" and params.get("warmup_min_ratio"):
        return f"{text} (step 1 has rate 0 and changes nothing)"
    if name == "WarmupCosineLR" or not params.get("warmup_min_lr"):
        return f"{text} (steps 1 and 2 have rate 0 and change nothing)"
    return text


def _peak(section: dict[str, Any], learning_rate: float) -> Any:
    name, given = section["type"], (section.get("params") or {}).get("warmup_max_lr")
    if given is not None:
        return given
    return 0.001 if name == "WarmupDecayLR" else learning_rate


def _warmup(params: dict[str, Any]) -> int:
    return max(2, params.get("warmup_num_steps", 1000))  # DeepSpeed takes at least two


def _numbers(value: Any) -> list[float]:
    return [float(v) for v in (value if isinstance(value, list) else [value])]

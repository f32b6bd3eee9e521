"""Schedulers of a DeepSpeed JSON: what is refused, and what the banner says of them."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from resolved_json import Resolve

from minimind.config.deepspeed_schedulers import SCHEDULERS, describe_scheduler
from minimind.errors import ConfigError


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

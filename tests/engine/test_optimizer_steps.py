"""The engine's steps beside those of plain PyTorch with fp32 masters: every shipped JSON, precision
and kind of optimizer."""

from __future__ import annotations

from typing import Any

import pytest
from optimizer_steps import (
    ADAMW,
    ALONE,
    FACTORS,
    RATE,
    STEPS,
    assert_equal_masters,
    assert_within_rounding,
    engine_steps,
    plain_steps,
    resolved,
    take_step,
)
from small_models import random_model, small_config

from minimind.config.deepspeed_json import SHIPPED, load_ds_config
from minimind.config.recipe import Recipe
from minimind.engine.deepspeed_engine import DeepSpeedEngine
from minimind.runtime.devices import find_device

FILES = sorted(
    path.stem for path in SHIPPED.glob("*.json") if "fp16" not in load_ds_config(str(path), {})
)
OTHERS: dict[str, dict[str, Any]] = {
    "Adam": {"torch_adam": True, "adam_w_mode": False},
    "SGD": {"momentum": 0.9, "dampening": 0.5},
    "NAdam": {},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "ASGD": {"t0": 1},
    "Adagrad": {"lr_decay": 0.1},
}
"""What a step on zero gradients before the first would change: counters, momentum, averages."""


pytestmark = pytest.mark.usefixtures("one_rank")


@pytest.mark.parametrize("factors", [{}, FACTORS], ids=["one group", "groups"])
@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_every_file_takes_the_steps_of_plain_pytorch_to_the_bit(
    kind: str, factors: dict[str, Any]
) -> None:
    expected, _ = plain_steps(kind, ADAMW, 0.0, STEPS, **factors)
    for name in FILES:
        found, _ = engine_steps(name, kind, ADAMW, 0.0, STEPS, **factors)
        assert_equal_masters(found, expected)


@pytest.mark.usefixtures("cpu_with_fp16")
def test_fp16_does_so_under_its_loss_scale() -> None:
    expected, norms = plain_steps("fp16", ADAMW, 0.0, STEPS)
    for name in ("zero0", "zero1", "zero2_fp16", "zero3"):
        found, its_norms = engine_steps(name, "fp16", ADAMW, 0.0, STEPS)
        assert_equal_masters(found, expected)
        assert its_norms == pytest.approx(norms, rel=1e-6)


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
@pytest.mark.parametrize("type", OTHERS)
def test_other_optimizers_do_so_too(type: str, kind: str) -> None:
    optimizer = {"type": type, "params": {"lr": RATE, **OTHERS[type]}}
    expected, _ = plain_steps(kind, optimizer, 0.0, STEPS)
    for name in ("zero0",) if type == "Adagrad" else ("zero0", "zero1", "zero2", "zero3"):
        found, _ = engine_steps(name, kind, optimizer, 0.0, STEPS)
        assert_equal_masters(found, expected)


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_clipping_is_plain_pytorchs(kind: str) -> None:
    sgd = {"type": "SGD", "params": {"lr": RATE}}
    clipping = 0.05
    expected, norms = plain_steps(kind, sgd, clipping, 1)
    assert norms[0] > 10 * clipping
    for name in ("zero0", "zero1", "zero2", "zero3"):
        found, its_norms = engine_steps(name, kind, sgd, clipping, 1)
        assert its_norms == pytest.approx(norms, rel=2.0**-20)
        assert_within_rounding(found, expected)


@pytest.mark.parametrize("checks", [False, True])
def test_stage_0_looks_at_each_gradient_for_overflow_only_where_asked(
    checks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepspeed.runtime.utils import CheckOverflow

    calls = []
    look = CheckOverflow.has_overflow
    monkeypatch.setattr(
        CheckOverflow,
        "has_overflow",
        lambda *given, **more: calls.append(1) or look(*given, **more),
    )
    ds_config = resolved("zero0", "bf16", ADAMW, 0.0)
    ds_config["bf16"] = {"enabled": True, "check_grad_overflow": checks}
    model = random_model(small_config())
    engine = DeepSpeedEngine(model, ds_config, Recipe(), find_device(), ALONE)
    take_step(engine, 0)
    assert bool(calls) == checks

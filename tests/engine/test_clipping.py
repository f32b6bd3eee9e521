"""Clipping on the device: DeepSpeed's arithmetic to the bit, without its questions to the host, and
clipping by value as PyTorch does it."""

from __future__ import annotations

import math
import sys
from typing import Any, NoReturn

import pytest
import torch
from optimizer_steps import (
    ADAMW,
    FACTORS,
    RATE,
    STEPS,
    assert_equal_masters,
    assert_within_rounding,
    build_engine,
    engine_steps,
    plain_steps,
    take_backwards,
    take_step,
)
from torch import Tensor

from minimind.config.deepspeed_json import Hardware, load_ds_config, resolve
from minimind.config.recipe import Recipe
from minimind.config.sizes import Sizes
from minimind.engine import deepspeed_engine
from minimind.engine.clipping import clip_on_device
from minimind.engine.deepspeed_engine import DeepSpeedEngine
from minimind.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_rank")

CLIPPING = 0.05
"""A twentieth of the first norms, and less."""
SGD: dict[str, Any] = {"type": "SGD", "params": {"lr": RATE}}
NORMS = (0.3, 1.0, 7.5, math.inf, math.nan, -1.0)
FULL = [("zero1", "fp32"), ("zero2", "fp32"), ("zero2", "bf16"), ("zero3", "fp32")]
FULL += [("zero3", "bf16"), ("zero1", "fp16"), ("zero2_fp16", "fp16"), ("zero3", "fp16")]
"""Where the norm is taken as DeepSpeed takes it."""
EVERY = [*FULL, ("zero1", "bf16")]


def optimizer_of(engine: DeepSpeedEngine) -> Any:
    return engine._engine.optimizer


def is_same(found: Tensor, expected: Tensor) -> bool:
    return torch.equal(found.nan_to_num(7.0), expected.nan_to_num(7.0)) and torch.equal(
        found.isnan(), expected.isnan()
    )


def leave_it_to_deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepspeed_engine, "clip_on_device", lambda *_, **__: None)


@pytest.mark.parametrize("clipping", [0.0, 0.05, 1.0])
def test_a_gradient_is_scaled_as_deepspeed_scales_it(clipping: float):
    optimizer = optimizer_of(build_engine("zero2", "fp32", ADAMW, clipping))
    gradient = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 8
    gradient[3], gradient[5] = math.inf, math.nan
    for scale in (1.0, 256.0):
        optimizer.override_loss_scale(scale)
        for norm in NORMS:
            found, expected, total = gradient.clone(), gradient.clone(), torch.tensor(norm)
            type(optimizer).unscale_and_clip_grads(optimizer, [expected], total)
            optimizer.unscale_and_clip_grads([found], total)
            assert is_same(found, expected), (scale, norm)
            assert is_same(total, torch.tensor(norm))


@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_norms_are_deepspeeds(name: str):
    engine = build_engine(name, "bf16", ADAMW, 1.0)
    optimizer = optimizer_of(engine)
    parameters = list(engine.module.parameters())
    random = torch.Generator().manual_seed(0)
    padding = torch.full((3,), math.inf)
    padding._zero_padding = True  # type: ignore[attr-defined]
    for bad in (None, math.inf, -math.inf, math.nan):
        gradients = [torch.randn(1000, generator=random) for _ in parameters]
        if bad is not None:
            gradients[4][2] = bad
        if name == "zero2":
            gradients.insert(2, padding)
        expected = type(optimizer).get_grad_norm_direct(optimizer, gradients, parameters)
        found = optimizer.get_grad_norm_direct(gradients, parameters)
        assert found.dtype == expected.dtype
        assert is_same(found, expected)
        assert (float(found) == -1.0) == (bad is not None)


@pytest.mark.usefixtures("cpu_with_fp16")
@pytest.mark.parametrize("factors", [{}, FACTORS], ids=["one group", "groups"])
@pytest.mark.parametrize(("name", "kind"), FULL)
def test_steps_are_those_that_deepspeed_clips(
    name: str, kind: str, factors: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    found, norms = engine_steps(name, kind, ADAMW, CLIPPING, STEPS, **factors)
    leave_it_to_deepspeed(monkeypatch)
    expected, its_norms = engine_steps(name, kind, ADAMW, CLIPPING, STEPS, **factors)
    assert norms == its_norms
    assert norms[0] > 10 * CLIPPING
    assert_equal_masters(found, expected)


def ask_the_host(*_: Any) -> NoReturn:
    raise AssertionError("the host was asked")


@pytest.mark.parametrize(("name", "kind"), [case for case in EVERY if case[1] != "fp16"])
def test_the_host_is_not_asked(name: str, kind: str, monkeypatch: pytest.MonkeyPatch):
    engine = build_engine(name, kind, ADAMW, CLIPPING, **FACTORS)
    module = sys.modules[type(optimizer_of(engine)).__module__]
    original = module.is_invalid_grad_norm  # type: ignore[attr-defined]
    take_backwards(engine, 0)
    for name in ("__bool__", "__float__", "item", "tolist"):
        monkeypatch.setattr(Tensor, name, ask_the_host)
    engine.step(RATE)
    monkeypatch.undo()
    assert module.is_invalid_grad_norm is original  # type: ignore[attr-defined]
    assert float(engine.grad_norm) > 10 * CLIPPING


def spoil(engine: DeepSpeedEngine, value: float) -> Any:
    """Has every backward bring this value in one gradient."""
    weight = next(iter(engine.module.parameters()))

    def spoiled(grad: Tensor) -> Tensor:
        return torch.full_like(grad, value)

    return weight.register_hook(spoiled)


@pytest.mark.usefixtures("cpu_with_fp16")
@pytest.mark.parametrize("optimizer", [ADAMW, SGD], ids=["fused Adam", "SGD"])
@pytest.mark.parametrize(("name", "kind"), [c for c in EVERY if c != ("zero2", "bf16")])
def test_a_step_without_a_norm_changes_nothing(name: str, kind: str, optimizer: dict[str, Any]):
    engine = build_engine(name, kind, optimizer, CLIPPING)
    take_step(engine, 0)
    before, scale = engine.full_weights(), engine.loss_scale
    for value in (math.inf, math.nan):
        hook = spoil(engine, value)
        assert take_step(engine, 1) == math.inf
        assert_equal_masters(engine.full_weights(), before)
        hook.remove()
    # DeepSpeed forgives one overflow before it lowers the scale.
    assert engine.loss_scale == (scale / 2 if kind == "fp16" else scale)
    assert math.isfinite(take_step(engine, 2))
    after = engine.full_weights()
    assert any(not torch.equal(after[weight], before[weight]) for weight in before)
    assert all(weight.isfinite().all() for weight in after.values())


@pytest.mark.parametrize("name", ["zero1", "zero2"])
def test_in_bf16_a_norm_that_is_not_finite_is_told(name: str):
    engine = build_engine(name, "bf16", ADAMW, CLIPPING)
    spoil(engine, math.nan)
    assert take_step(engine, 0) == math.inf


@pytest.mark.usefixtures("cpu_with_fp16")
@pytest.mark.parametrize("factors", [{}, FACTORS], ids=["one group", "groups"])
@pytest.mark.parametrize("kind", ["fp32", "bf16", "fp16"])
def test_values_are_clipped_as_pytorch_clips_them(kind: str, factors: dict[str, Any]):
    """To the bit where the norm is left alone: of the gradient of the whole step, which two
    micro-batches add up."""
    value = 2e-3
    plain, norms = plain_steps(kind, SGD, 0.0, STEPS)
    expected, clipped = plain_steps(kind, SGD, 0.0, STEPS, clip_value=value, **factors)
    assert clipped[0] < norms[0] / 2
    assert any(not torch.equal(plain[name], expected[name]) for name in plain)
    names = ["zero1", "zero2", "zero3"] if kind == "fp16" else ["zero0", "zero1", "zero2", "zero3"]
    for name in names:
        found, its_norms = engine_steps(name, kind, SGD, 0.0, STEPS, clip_value=value, **factors)
        assert_equal_masters(found, expected)
        assert its_norms == pytest.approx(clipped, rel=2.0**-22)


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["zero0", "zero1", "zero2", "zero3"])
def test_values_are_clipped_before_the_norm_is(name: str, kind: str):
    value = 2e-3
    expected, norms = plain_steps(kind, SGD, CLIPPING / 10, 1, clip_value=value)
    assert norms[0] > CLIPPING / 2
    found, its_norms = engine_steps(name, kind, SGD, CLIPPING / 10, 1, clip_value=value)
    assert its_norms == pytest.approx(norms, rel=2.0**-20)
    assert_within_rounding(found, expected)


@pytest.mark.usefixtures("cpu_with_fp16")
@pytest.mark.parametrize("name", ["zero2_fp16", "zero3"])
def test_a_clipped_value_hides_no_overflow(name: str):
    engine = build_engine(name, "fp16", ADAMW, 0.0, clip_value=1e-3)
    before = engine.full_weights()
    spoil(engine, math.inf)
    assert take_step(engine, 0) == math.inf
    assert_equal_masters(engine.full_weights(), before)


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("zero2_offload", "bf16", r"zero_optimization.offload_optimizer: .*as zero2\.json"),
        ("zero0", "fp16", r"zero_optimization.stage 0 and fp16: it would hide the overflow"),
    ],
)
def test_where_values_cannot_be_clipped_it_is_said(name: str, kind: str, words: str):
    sets = {f"{other}.enabled": other == kind for other in ("bf16", "fp16")}
    hardware = Hardware("gpu", 1, kind)

    def resolve_with(value: float) -> None:
        recipe = Recipe(learning_rate=RATE, clip_value=value)
        resolve(load_ds_config(name, sets), recipe, set(), Sizes(20, 4, 2), hardware, 20_000)

    resolve_with(0.0)
    with pytest.raises(ConfigError, match=f"clip_value 0.1 with {words}"):
        resolve_with(0.1)
    with pytest.raises(ConfigError, match=r"clip_value is -1\.0; it must be at least 0"):
        Recipe(clip_value=-1.0).check()


def test_another_deepspeed_clips_by_itself():
    class DeepSpeedZeroOptimizer:
        """Has none of the parts by their names."""

    optimizer = DeepSpeedZeroOptimizer()
    clip_on_device(optimizer, 0.0)
    assert not vars(optimizer)
    with pytest.raises(ConfigError, match="this version of DeepSpeed clips otherwise"):
        clip_on_device(optimizer, 0.1)

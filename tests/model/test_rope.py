"""Rotary tables against the formulas of the specification in fp64."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from rope_scalings import LLAMA3
from small_models import reference_frequencies, small_config

from minimind.config.model import ModelConfig
from minimind.config.rope_scaling import YARN
from minimind.model.rope import rope_tables

CPU = torch.device("cpu")


def tables(config: ModelConfig, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    cos, sin = rope_tables(config, length, CPU)
    assert cos.dtype == sin.dtype == torch.float32
    assert cos.shape == sin.shape == (cos.shape[0], config.head_dim // 2)
    assert cos.shape[0] >= length
    return cos[:length], sin[:length]


@pytest.mark.parametrize("head_dim", [2, 12, 64, 96])
@pytest.mark.parametrize("theta", [1e4, 1e6])
def test_angles_are_positions_times_frequencies(head_dim: int, theta: float):
    config = small_config(head_dim=head_dim, rope_theta=theta)
    cos, sin = tables(config, 200)
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    angles = torch.arange(200, dtype=torch.float64)[:, None] / theta**exponents
    # fp32 angles: the error grows with the position.
    torch.testing.assert_close(cos.double(), angles.cos(), atol=3e-5, rtol=0)
    torch.testing.assert_close(sin.double(), angles.sin(), atol=3e-5, rtol=0)


def test_golden_frequencies():
    """Head size 4, theta 10000: 1 and 1/100 radian a position."""
    config = small_config(head_dim=4, rope_theta=1e4)
    cos, sin = tables(config, 3)
    assert cos[:, 0].tolist() == pytest.approx([1.0, 0.5403023, -0.4161468], abs=1e-6)
    assert sin[:, 1].tolist() == pytest.approx([0.0, 0.0099998, 0.0199987], abs=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"factor": 4.0},
        {"original_max_position_embeddings": 64},
        {"beta_fast": 8.0, "beta_slow": 2.0},
        # low and high meet: the ramp is a step.
        {"beta_fast": 1.0, "beta_slow": 1.0},
        # high is the last dimension, then low is beyond it.
        {"original_max_position_embeddings": 10**6},
        {"original_max_position_embeddings": 10**9},
    ],
)
@pytest.mark.parametrize("head_dim", [8, 64, 96])
@pytest.mark.parametrize("theta", [1e4, 1e6])
def test_yarn_is_the_formula_of_the_specification(
    changes: dict[str, float], head_dim: int, theta: float
):
    config = small_config(head_dim=head_dim, rope_theta=theta, rope_scaling={**YARN, **changes})
    expected = reference_frequencies(config)
    cos, sin = tables(config, 2)
    torch.testing.assert_close(torch.atan2(sin[1], cos[1]).double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 3.5},
        LLAMA3,
        {**LLAMA3, "factor": 32.0, "original_max_position_embeddings": 100},
        {**LLAMA3, "low_freq_factor": 2.0, "high_freq_factor": 2.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("head_dim", [8, 64, 96])
@pytest.mark.parametrize("theta", [1e4, 5e5])
def test_linear_and_llama3_are_their_definitions(
    scaling: dict[str, Any], head_dim: int, theta: float
):
    config = small_config(head_dim=head_dim, rope_theta=theta, rope_scaling=scaling)
    cos, sin = tables(config, 2)
    found = torch.atan2(sin[1], cos[1]).double()
    torch.testing.assert_close(found, reference_frequencies(config), rtol=1e-5, atol=0)


def test_golden_frequencies_of_llama3():
    """Theta 1e4, head size 8: wavelengths 6.28, 62.8, 628 and 6283 in a context of 1000. The first
    two turn over 4 times and stay; the third turns 1.59 times, so a share of 0.197 of 0.01 stays
    and the rest is divided by 8; the last turns less than once and is divided by 8."""
    scaling = {**LLAMA3, "original_max_position_embeddings": 1000}
    cos, sin = tables(small_config(head_dim=8, rope_theta=1e4, rope_scaling=scaling), 2)
    angles = torch.atan2(sin[1], cos[1]).tolist()
    share = (1000 / 628.3185307 - 1) / 3
    third = 0.01 * (share + (1 - share) / 8)
    assert angles == pytest.approx([1.0, 0.1, third, 0.001 / 8], rel=1e-5)


def test_yarn_leaves_the_fast_and_slows_the_slow():
    """Head size 96 and theta 1e6, by hand: inv(32) = 96·ln(2048/64π)/(2·ln 1e6) = 8.06 and
    inv(1) = 20.1, so dimensions to 8 stay, and from 21 on turn 16 times slower."""
    plain = small_config(head_dim=96)
    yarn = small_config(head_dim=96, rope_scaling="yarn")
    ratio = reference_frequencies(plain) / reference_frequencies(yarn)
    ours = [torch.atan2(*reversed([t[1].double() for t in tables(c, 2)])) for c in (plain, yarn)]
    torch.testing.assert_close(ours[0] / ours[1], ratio, rtol=1e-5, atol=0)
    assert ratio[:9].tolist() == pytest.approx([1.0] * 9)
    assert ratio[21:].tolist() == pytest.approx([16.0] * 27)
    assert all(a < b for a, b in itertools.pairwise(ratio[8:22]))


def test_the_attention_factor_scales_the_tables():
    plain = small_config(rope_scaling=dict(YARN))
    scaled = small_config(rope_scaling={**YARN, "attention_factor": 1.25})
    for a, b in zip(tables(plain, 9), tables(scaled, 9), strict=True):
        torch.testing.assert_close(a * 1.25, b)


def test_a_longer_table_begins_with_the_shorter():
    config = small_config()
    for length in (1, 2, 3, 64, 65, 1000):
        for short, long in zip(tables(config, length), tables(config, 5000), strict=True):
            assert torch.equal(short, long[:length])


def test_the_largest_context_keeps_its_precision():
    """Position 32767 in fp32: its fastest angle is off by less than 2·10⁻³ radians."""
    config = small_config(head_dim=64)
    cos, _ = tables(config, 32768)
    exact = math.cos(32767 * 1.0)
    assert cos[32767, 0].item() == pytest.approx(exact, abs=2e-3)

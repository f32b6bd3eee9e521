"""Which tokens the filters leave, and with which probabilities."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from samplers import V, filtered_probs, params, random_logits, transformers_logits

from minimind.inference.sampling import SamplingParams


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.3},
        {"temperature": 2.5},
        {"top_k": 1},
        {"top_k": 5},
        {"top_k": V},
        {"top_k": 10 * V},
        {"top_p": 0.01},
        {"top_p": 0.5},
        {"top_p": 0.95},
        {"top_p": 0.999},
        {"min_p": 0.02},
        {"min_p": 0.5},
        {"min_p": 1.0},
        {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
        {"temperature": 1.7, "top_k": 40, "top_p": 0.6},
        {"top_p": 0.8, "min_p": 0.2},
    ],
    ids=str,
)
def test_filters_are_those_of_transformers(changes: dict[str, Any]):
    for seed in range(20):
        logits_V, p = random_logits(seed), params(**changes)
        expected = transformers_logits(logits_V, [], p).softmax(0)
        found = filtered_probs(logits_V[None], [p])[0]
        assert torch.equal(found > 0, expected > 0)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("vocab", [300, 700])
def test_top_p_beyond_the_likeliest(vocab: int):
    """More tokens are needed than are sorted at first."""
    logits_1V = torch.randn(1, vocab, generator=torch.Generator().manual_seed(0)) * 0.01
    p = params(top_p=0.97)
    expected = transformers_logits(logits_1V[0], [], p).softmax(0)
    (found,) = filtered_probs(logits_1V, [p])
    assert torch.equal(found > 0, expected > 0)
    assert (found > 0).sum() > 256


def test_golden_filters():
    """Probabilities 0.4, 0.3, 0.2, 0.1, worked out by hand."""
    logits_V = torch.tensor([0.2, 0.4, 0.1, 0.3]).log()

    def probs(**changes: Any) -> list[float]:
        return filtered_probs(logits_V[None], [params(**changes)])[0].tolist()

    assert probs() == pytest.approx([0.2, 0.4, 0.1, 0.3])
    assert probs(top_k=2) == pytest.approx([0, 4 / 7, 0, 3 / 7])
    # 0.4 and 0.3 do not reach 0.75, so a third is needed.
    assert probs(top_p=0.75) == pytest.approx([2 / 9, 4 / 9, 0, 3 / 9])
    assert probs(top_p=0.65) == pytest.approx([0, 4 / 7, 0, 3 / 7])
    assert probs(min_p=0.6) == pytest.approx([0, 4 / 7, 0, 3 / 7])
    squares = [0.04, 0.16, 0.01, 0.09]
    assert probs(temperature=0.5) == pytest.approx([s / 0.3 for s in squares])
    # Top-p counts what top-k left: 4/7 alone reaches 0.5.
    assert probs(top_k=2, top_p=0.5) == pytest.approx([0, 1, 0, 0])


def test_one_token_always_remains():
    for seed in range(10):
        p = params(top_p=1e-6, min_p=1.0, top_k=1)
        (probs_V,) = filtered_probs(random_logits(seed)[None], [p])
        assert probs_V.max() == 1
        assert probs_V.argmax() == random_logits(seed).argmax()
    flat = filtered_probs(torch.zeros(1, V), [params(top_p=1e-6)])
    assert (flat > 0).any()


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e6])
def test_extreme_temperatures_stay_finite(temperature: float):
    logits_1V = random_logits(1, scale=20.0)[None]
    (probs_V,) = filtered_probs(logits_1V, [params(temperature=temperature)])
    assert probs_V.isfinite().all()
    assert probs_V.sum().item() == pytest.approx(1)
    if temperature < 1:
        assert probs_V.argmax() == random_logits(1).argmax()


@pytest.mark.parametrize("change", [{"temperature": 5e-324}, {"top_p": 5e-324}])
def test_what_fp32_rounds_to_zero_keeps_the_likeliest_token(change: dict[str, float]) -> None:
    logits_BV = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    likeliest_B = logits_BV.argmax(-1)
    params = [SamplingParams(**({"temperature": 1.0} | change)), SamplingParams(temperature=1.0)]
    probs_BV = filtered_probs(logits_BV, params)
    assert probs_BV[0, likeliest_B[0]] == 1.0
    assert bool((probs_BV[1] > 0).all())


def test_a_row_that_is_not_finite_leaves_the_others_alone() -> None:
    logits_BV = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    params = [SamplingParams(temperature=1.0, top_p=0.5)] * 2
    expected_V = filtered_probs(logits_BV, params)[1]
    logits_BV[0, 3] = float("nan")
    assert torch.equal(filtered_probs(logits_BV, params)[1], expected_V)

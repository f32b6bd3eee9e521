"""Sampling filters against those of `transformers`, and which token then comes out."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from samplers import (
    V,
    both_samplers,
    params,
    random_logits,
    sampler_of,
    transformers_logits,
)

from minimind.errors import ConfigError
from minimind.inference.filters import draw
from minimind.inference.sampler import NO_TOKEN, Sampler
from minimind.inference.sampling import SamplingParams


@both_samplers
@pytest.mark.parametrize("penalty", [0.5, 1.1, 1.3, 5.0])
def test_the_repetition_penalty_is_that_of_transformers(penalty: float, kind: type[Sampler]):
    """Greedy, step by step: prompt and new tokens count, each once however often it came."""
    for seed in range(20):
        seen = [3, 7, 7, 11]
        p = params(temperature=0.0, repetition_penalty=penalty)
        sampler = sampler_of(p, prompt=seen, kind=kind)
        for step in range(12):
            logits_V = random_logits(100 * seed + step, scale=1.0)
            token = sampler.choose(logits_V[None])[0]
            assert token == int(transformers_logits(logits_V, seen, p).argmax())
            seen.append(token)


@both_samplers
def test_presence_and_frequency_count_the_continuation_alone(kind: type[Sampler]):
    """OpenAI's formula: logit - count * frequency - [count > 0] * presence."""
    sampler = sampler_of(
        params(temperature=0.0, presence_penalty=0.3, frequency_penalty=0.2), kind=kind
    )
    counts = torch.zeros(V)
    for step in range(40):
        logits_V = random_logits(0, scale=1.0) + random_logits(step, scale=0.1)
        token = sampler.choose(logits_V[None])[0]
        assert token == int((logits_V - 0.2 * counts - 0.3 * (counts > 0)).argmax())
        counts[token] += 1
    assert counts.max() > 1, "else frequency would not show"


MIXED = (
    params(temperature=0.0),
    params(seed=1),
    params(seed=2, top_k=7),
    params(seed=3, top_p=0.8, repetition_penalty=1.3),
    params(seed=4, min_p=0.1, temperature=1.7),
    params(temperature=0.0, presence_penalty=1.0),
    params(seed=5, top_p=0.3, top_k=20, frequency_penalty=0.7),
)


@both_samplers
def test_a_sequence_does_not_see_who_shares_the_batch(kind: type[Sampler]):
    """Alone, all together, and in changing company: the same tokens."""
    logits_SV = [torch.stack([random_logits(50 * s + i) for s in range(7)]) for i in range(15)]
    alone = [sampler_of(*MIXED) for _ in MIXED]
    together, changing = (sampler_of(*MIXED, kind=kind) for _ in range(2))
    for step, logits in enumerate(logits_SV):
        expected = [one.choose(logits[i : i + 1], [i])[0] for i, one in enumerate(alone)]
        assert together.choose(logits, range(7)) == expected
        split = step % 6 + 1
        slots = [*range(split, 7), *range(split)]
        for part in (slots[:3], slots[3:]):
            found = changing.choose(logits[part], part)
            assert found == [expected[i] for i in part]


@both_samplers
def test_a_slot_starts_anew(kind: type[Sampler]):
    p = params(temperature=0.0, repetition_penalty=5.0, frequency_penalty=1.0)
    logits_1V = random_logits(3)[None]
    sampler = sampler_of(p, kind=kind)
    first = [sampler.choose(logits_1V)[0] for _ in range(5)]
    sampler.reopen(0)
    assert [sampler.choose(logits_1V)[0] for _ in range(5)] == first
    assert len(set(first)) > 1


@both_samplers
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_give_no_token(
    bad: float, temperature: float, kind: type[Sampler]
):
    p = params(temperature=temperature, seed=1)
    logits_BV = torch.stack([random_logits(0), random_logits(1)])
    expected = sampler_of(p, p, kind=kind).choose(logits_BV, [0, 1])
    logits_BV[0, 5] = bad
    assert sampler_of(p, p, kind=kind).choose(logits_BV, [0, 1]) == [NO_TOKEN, expected[1]]


def test_greedy_is_the_most_likely_whatever_the_filters():
    for seed in range(10):
        p = params(temperature=0.0, top_k=3, top_p=0.1, min_p=0.9, seed=seed)
        tokens = sampler_of(p).choose(random_logits(seed)[None])
        assert tokens == [int(random_logits(seed).argmax())]


def draws(count: int = 40, **changes: Any) -> list[int]:
    sampler = sampler_of(params(**changes))
    logits_1V = random_logits(0, scale=1.0)[None]
    return [sampler.choose(logits_1V)[0] for _ in range(count)]


def test_a_seed_repeats_the_tokens():
    assert draws(seed=7) == draws(seed=7)
    assert draws(seed=7) != draws(seed=8)
    assert draws() != draws()


def test_a_seed_does_not_touch_the_global_generator():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    draws(seed=7)
    assert torch.equal(torch.rand(3), expected)


@both_samplers
def test_tokens_come_as_often_as_they_are_likely(kind: type[Sampler]):
    logits_V = torch.tensor([0.2, 0.4, 0.1, 0.3]).log()
    count = 3000
    sampler = sampler_of(
        params(seed=1, top_k=3, max_new_tokens=count), prompt=[0], kind=kind, vocab=4
    )
    tokens = [sampler.choose(logits_V[None])[0] for _ in range(count)]
    found = torch.bincount(torch.tensor(tokens), minlength=4)
    assert found[2] == 0
    for token, share in ((0, 2 / 9), (1, 4 / 9), (3, 3 / 9)):
        # Five standard deviations.
        assert found[token] / count == pytest.approx(
            share, abs=5 * math.sqrt(share * (1 - share) / count)
        )


@both_samplers
def test_logits_are_left_alone(kind: type[Sampler]):
    logits_V = random_logits(1)
    kept = logits_V.clone()
    p = params(top_k=3, top_p=0.5, min_p=0.1, repetition_penalty=1.5, presence_penalty=0.5)
    sampler_of(p, kind=kind).choose(logits_V[None])
    assert torch.equal(logits_V, kept)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", -1),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", -1.0),
        ("repetition_penalty", math.inf),
        ("repetition_penalty", math.nan),
        ("presence_penalty", math.nan),
        ("frequency_penalty", math.inf),
        ("logprobs", -1),
        ("stop", ("a", "")),
    ],
)
def test_a_value_that_cannot_be_used_is_named(name: str, value: Any):
    with pytest.raises(ConfigError) as caught:
        SamplingParams(**{name: value})
    assert name in str(caught.value)
    assert repr(value) in str(caught.value)


def test_the_defaults_are_greedy():
    assert SamplingParams().temperature == 0
    assert dataclasses.asdict(SamplingParams())["stop"] == ()


@pytest.mark.parametrize("vocab", [1, 63, 64, 65, 1000])
def test_a_drawn_token_is_where_the_summed_probabilities_pass_the_number(vocab: int) -> None:
    logits_BV = torch.randn(500, vocab, generator=torch.Generator().manual_seed(vocab)) * 3
    # Most tokens are impossible, whole stretches of them too.
    logits_BV[:, torch.arange(vocab) % 200 > 7] = float("-inf")
    probs_BV = logits_BV.softmax(-1)
    numbers = torch.rand(500, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    numbers[:3] = torch.tensor([0.0, 1 - 2**-53, 1 - 2**-52])
    drawn_B = draw(probs_BV, numbers)
    assert (probs_BV.gather(1, drawn_B[:, None]) > 0).all()
    summed_BV = probs_BV.double().cumsum(-1)
    upper_B = summed_BV.gather(1, drawn_B[:, None])[:, 0] / summed_BV[:, -1]
    lower_B = upper_B - probs_BV.double().gather(1, drawn_B[:, None])[:, 0] / summed_BV[:, -1]
    assert (lower_B - 1e-12 <= numbers).all()
    assert (numbers <= upper_B + 1e-12).all()

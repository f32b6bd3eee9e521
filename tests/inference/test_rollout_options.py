"""What training asks of the batch engine beside serving: the token that ended a text, the
log-probabilities that it was drawn with, and new weights in the same place."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from small_engines import engine_of, generation_in, request, whole
from small_models import EXPERTS, random_documents, random_model, small_config
from torch import Tensor

from minimind.inference.batch_engine import BatchEngine
from minimind.inference.batch_settings import BatchSettings, UsedSettings, setting_numbers
from minimind.inference.cpu_decode import CpuDecode
from minimind.inference.load import lay_out_for_decoding
from minimind.inference.logprobs import TokenLogprob
from minimind.inference.pending_tokens import PendingTokens, pack
from minimind.inference.request import Completion, GenerationRequest
from minimind.inference.sampling import SamplingParams
from minimind.model.transformer import Transformer


def build_model(seed: int = 0, **changes: Any) -> Transformer:
    """One that C++ can decode too."""
    return random_model(small_config(**{"head_dim": 16, **changes}), seed).eval()


def decoded_by(engine: BatchEngine, decoding: str) -> bool:
    return isinstance(engine._runner._cpu_decode, CpuDecode) == (decoding == "C++")


def stopping_at(token: int, *, gives_stop: bool, **settings: Any) -> GenerationRequest:
    asked = request([5, 6], new=12, stop_ids=(token,), **settings)
    return dataclasses.replace(asked, gives_stop=gives_stop)


@pytest.mark.parametrize("logprobs", [None, 0, 2])
def test_the_token_that_ends_it_is_given_out_where_that_is_asked_for(
    decoding: str, logprobs: int | None
):
    engine = engine_of(build_model())
    assert decoded_by(engine, decoding)
    (free,) = engine.generate([request([5, 6], new=12, logprobs=logprobs)])
    at = next(i for i, token in enumerate(free.ids) if i > 2 and token not in free.ids[:i])
    both = [stopping_at(free.ids[at], gives_stop=g, logprobs=logprobs) for g in (True, False)]
    with_stop, without = engine.generate(both)
    assert with_stop.ids == free.ids[: at + 1]
    assert without.ids == free.ids[:at]
    assert with_stop.text == without.text
    for found in (with_stop, without):
        assert (found.finish_reason, found.completion_tokens) == ("stop", at + 1)
        assert len(found.logprobs) == (len(found.ids) if logprobs is not None else 0)
        for entry, expected in zip(found.logprobs, free.logprobs, strict=False):
            assert entry.id == expected.id
            assert entry.logprob == pytest.approx(expected.logprob, abs=1e-5)


def test_a_stop_as_the_first_token_and_one_at_the_limit(model: Transformer):
    engine = engine_of(model)
    (free,) = engine.generate([request([5, 6], new=12)])
    (found,) = engine.generate([stopping_at(free.ids[0], gives_stop=True, logprobs=0)])
    assert (found.ids, found.text, found.finish_reason) == (free.ids[:1], "", "stop")
    assert len(found.logprobs) == 1
    at = next(i for i, token in enumerate(free.ids) if i > 2 and token not in free.ids[:i])
    asked = stopping_at(free.ids[at], gives_stop=True)
    params = dataclasses.replace(asked.params, max_new_tokens=at + 1)
    (found,) = engine.generate([dataclasses.replace(asked, params=params)])
    assert (found.ids, found.finish_reason) == (free.ids[: at + 1], "stop"), "not cut by the limit"


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_tempered_log_probabilities_are_those_that_tokens_are_drawn_with(
    decoding: str, temperature: float
):
    model = build_model()
    prompts = random_documents([6, 13, 2])
    settings = {"temperature": temperature, "seed": 3, "logprobs": 2, "top_k": 20}
    engine = engine_of(model)
    assert decoded_by(engine, decoding)
    raw, tempered = (
        engine.generate([request(p, tempered_logprobs=t, **settings) for p in prompts])
        for t in (False, True)
    )
    for prompt, one, other in zip(prompts, raw, tempered, strict=True):
        assert one.ids == other.ids
        logits_TV = whole(model, [*prompt, *one.ids[:-1]])[len(prompt) - 1 :]
        for found, divisor in ((one, 1.0), (other, temperature)):
            expected_TV = (logits_TV.double() / divisor).log_softmax(-1)
            for entry, expected_V in zip(found.logprobs, expected_TV, strict=True):
                assert entry.logprob == pytest.approx(expected_V[entry.id].item(), abs=1e-4)
                values, ids = expected_V.topk(2)
                assert [token for token, _ in entry.top] == ids.tolist()
                assert [value for _, value in entry.top] == pytest.approx(values.tolist(), abs=1e-4)


def test_greedy_has_no_temperature_to_be_seen(model: Transformer):
    settings: dict[str, Any] = {"temperature": 0.0, "logprobs": 0}
    raw, tempered = engine_of(model).generate(
        [request([5, 6], tempered_logprobs=t, **settings) for t in (False, True)]
    )
    assert raw.logprobs == tempered.logprobs


MIXED = [
    SamplingParams(logprobs=3),
    SamplingParams(),
    SamplingParams(logprobs=0, temperature=0.7, tempered_logprobs=True),
    SamplingParams(logprobs=5, temperature=1.3, tempered_logprobs=True),
    SamplingParams(logprobs=1, temperature=2.0),
    SamplingParams(temperature=2.0, tempered_logprobs=True),
    SamplingParams(logprobs=200, temperature=0.0, tempered_logprobs=True),
]


def read(
    logits_BV: Tensor, chosen_B: Tensor, params: list[SamplingParams], on_device: bool
) -> tuple[list[int], list[TokenLogprob | None]]:
    """As the sampler has it read; on a device in a batch that is filled up."""
    vocab, slots = logits_BV.shape[1], range(len(params))
    generations = [generation_in(slot, one) for slot, one in enumerate(params)]
    if not on_device:
        settings = BatchSettings.build(params, slots, vocab, torch.device("cpu"))
        packed = pack(logits_BV, chosen_B, settings)
        return parts(PendingTokens(packed, generations, settings.used))
    batch = 8
    used = UsedSettings.by(params, vocab, waits=False)
    numbers_CB = torch.tensor(setting_numbers(params, slots, vocab, batch))
    rows = [*slots, *[0] * (batch - len(params))]
    packed = pack(logits_BV[rows], chosen_B[rows], BatchSettings.over(numbers_CB, used))
    return parts(PendingTokens(packed, generations, used, range(batch)))


def parts(pending: PendingTokens) -> tuple[list[int], list[TokenLogprob | None]]:
    read = pending.read()
    return [token for _, token, _ in read], [logprob for _, _, logprob in read]


@pytest.mark.parametrize(
    "params",
    [MIXED, MIXED[::-1], MIXED[:1], MIXED[1:2], MIXED[2:3] * 4, [MIXED[1], MIXED[2]]],
    ids=["mixed", "backwards", "one", "none", "all alike", "none and no top"],
)
@pytest.mark.parametrize("on_device", [False, True])
def test_what_each_request_asks_for_is_read(params: list[SamplingParams], on_device: bool):
    """In whatever company, a row without a token included."""
    logits_BV = 4 * torch.randn(len(params), 97, generator=torch.Generator().manual_seed(1))
    before_BV = logits_BV.clone()
    chosen_B = torch.arange(len(params)) * 7
    if len(params) > 2:
        chosen_B[1] = -1
    tokens, found = read(logits_BV, chosen_B, params, on_device)
    assert tokens == chosen_B.tolist()
    assert torch.equal(logits_BV, before_BV)
    for row, (one, entry) in enumerate(zip(params, found, strict=True)):
        if one.logprobs is None:
            assert entry is None
            continue
        assert entry is not None
        divisor = one.temperature if one.tempered_logprobs and one.temperature else 1.0
        expected_V = (logits_BV[row].double() / divisor).log_softmax(-1)
        assert entry.id == tokens[row]
        if tokens[row] >= 0:
            assert entry.logprob == pytest.approx(expected_V[tokens[row]].item(), abs=1e-5)
        values, ids = expected_V.topk(min(one.logprobs, 97))
        assert [token for token, _ in entry.top] == ids.tolist()
        assert [value for _, value in entry.top] == pytest.approx(values.tolist(), abs=1e-5)


def overwrite(model: Transformer, other: Transformer, how: str) -> None:
    """As an optimizer does it, that of DeepSpeed without a trace; or in another place, as where
    weights are gathered anew."""
    for parameter, new in zip(model.parameters(), other.parameters(), strict=True):
        if how == "in place":
            parameter.data.copy_(new.data)
        else:
            parameter.data = new.data.clone()


@pytest.mark.parametrize("how", ["in place", "elsewhere"])
@pytest.mark.parametrize("by_columns", [True, False])
def test_after_new_weights_an_engine_says_what_a_new_one_says(
    decoding: str, how: str, by_columns: bool
):
    """And finds no prompt in its cache that the old ones have computed."""
    model, other = build_model(0), build_model(1)
    if by_columns:
        lay_out_for_decoding(model)
    requests = [request(p, new=10, logprobs=0) for p in random_documents([40, 3, 17, 40, 9])]
    engine = engine_of(model, 3)
    assert decoded_by(engine, decoding)
    before = engine.generate(requests)
    overwrite(model, other, how)
    engine.refresh()
    after = engine.generate(requests)
    fresh = engine_of(other, 3).generate(requests)
    for one, expected, old in zip(after, fresh, before, strict=True):
        assert one.ids == expected.ids != old.ids
        assert one.cached_tokens == expected.cached_tokens
        assert log_probs(one) == pytest.approx(log_probs(expected), abs=1e-5)


def log_probs(completion: Completion) -> list[float]:
    return [entry.logprob for entry in completion.logprobs]


def test_nothing_of_the_old_weights_is_found_again(model: Transformer):
    engine = engine_of(model, 2)
    prompt = random_documents([50])[0]
    assert [engine.generate([request(prompt)])[0].cached_tokens for _ in range(2)] == [0, 49]
    engine.refresh()
    assert [engine.generate([request(prompt)])[0].cached_tokens for _ in range(2)] == [0, 49]


@pytest.mark.parametrize("changes", EXPERTS[:1], ids=["experts"])
def test_a_mixture_of_experts_is_refreshed(changes: dict[str, Any]):
    model, other = (random_model(small_config(**changes), seed).eval() for seed in (0, 1))
    requests = [request(p, new=10) for p in random_documents([20, 3])]
    engine = engine_of(model)
    engine.generate(requests)
    overwrite(model, other, "in place")
    engine.refresh()
    ids, fresh = ([c.ids for c in e.generate(requests)] for e in (engine, engine_of(other)))
    assert ids == fresh


@pytest.mark.parametrize("begun", [False, True])
def test_weights_do_not_change_under_a_request(model: Transformer, begun: bool):
    engine = engine_of(model)
    engine.submit(request([5, 6]))
    if begun:
        engine.step()
    with pytest.raises(AssertionError, match="other weights than they began with"):
        engine.refresh()
    while engine.has_work:
        engine.step()
    engine.refresh()

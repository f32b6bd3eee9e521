"""The batch engine against the whole forward made again for every token, whoever shares a batch."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
import torch
from small_adapters import random_adapter
from small_engines import (
    check_greedy,
    engine_of,
    fail_a_step,
    request,
    run_to_the_end,
    tokenizer,
    whole,
)
from small_models import EXPERTS, FAMILIES, random_documents, random_model, small_config

from minimind.errors import ConfigError
from minimind.inference.batch_engine import BatchEngine
from minimind.inference.request import Completion, GenerationRequest
from minimind.inference.sampling import SamplingParams
from minimind.lora.loaded import LoadedAdapters
from minimind.model.transformer import Transformer

V = 97


@pytest.mark.parametrize("max_batch", [1, 3, 32])
@pytest.mark.parametrize(
    "changes", [{"family": f} for f in FAMILIES] + EXPERTS, ids=[*FAMILIES, *map(str, EXPERTS)]
)
def test_greedy_is_the_whole_forward_at_each_step(changes: dict[str, Any], max_batch: int):
    model = random_model(small_config(**changes), seed=1).eval()
    lengths = [1, 2, 30, 7, 64, 3] if max_batch < 32 else [1 + (7 * i) % 45 for i in range(32)]
    prompts = random_documents(lengths, seed=2)
    engine = engine_of(model, max_batch, max_prefill=20)
    completions = engine.generate([request(p, new=5 + i % 9) for i, p in enumerate(prompts)])
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        assert len(completion.ids) == 5 + i % 9
        assert completion.finish_reason == "length"
        check_greedy(model, prompt, completion)
    assert engine.stats.free_slots == max_batch
    assert not engine.has_work


def test_bf16_differs_by_near_ties_alone():
    model = random_model(small_config()).eval().bfloat16()
    prompts = random_documents([9, 30, 1, 14])
    for prompt, completion in zip(
        prompts, engine_of(model).generate([request(p, new=20) for p in prompts]), strict=True
    ):
        logits_TV = whole(model, [*prompt, *completion.ids[:-1]])[len(prompt) - 1 :].float()
        chosen_T = logits_TV.gather(1, torch.tensor(completion.ids)[:, None])[:, 0]
        # A few units in bf16's last place of logits around 4.
        assert (logits_TV.amax(-1) - chosen_T).max() < 0.15


def test_contexts_past_the_original_length_with_yarn():
    sizes = {"hidden_size": 16, "head_dim": 8, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = random_model(small_config(rope_scaling="yarn", num_hidden_layers=1, **sizes)).eval()
    prompts = random_documents([2100, 2045, 9])
    completions = engine_of(model, 3, slot=2200).generate([request(p, new=6) for p in prompts])
    for prompt, completion in zip(prompts, completions, strict=True):
        check_greedy(model, prompt, completion)


def test_company_changes_nothing(model: Transformer):
    """The same requests alone, together, joining late, and with others cancelled beside them."""
    prompts = random_documents([5, 40, 1, 17, 33, 8])
    settings: list[dict[str, Any]] = [
        {"new": 12},
        {"new": 20, "temperature": 1.0, "seed": 1},
        {"new": 15, "repetition_penalty": 1.3, "logprobs": 2},
        {"new": 9, "temperature": 0.8, "top_p": 0.8, "top_k": 30, "seed": 2},
        {"new": 18, "temperature": 1.2, "min_p": 0.05, "frequency_penalty": 0.5, "seed": 3},
        {"new": 6, "presence_penalty": 2.0},
    ]
    requests = [request(p, **s) for p, s in zip(prompts, settings, strict=True)]
    alone = [engine_of(model, 1).generate([r])[0] for r in requests]
    for max_batch, max_prefill in ((6, 512), (2, 512), (4, 7)):
        engine = engine_of(model, max_batch, max_prefill=max_prefill)
        for together, expected in zip(engine.generate(requests), alone, strict=True):
            assert (together.ids, together.text) == (expected.ids, expected.text)
    engine = engine_of(model, 4)
    found: dict[int, list[int]] = {}
    ids, others = [], []
    generator = random.Random(0)
    for late in requests:
        ids.append(engine.submit(late))
        others.append(engine.submit(request(random_documents([11])[0], new=30)))
        for _ in range(3):
            for delta in engine.step():
                found.setdefault(delta.request_id, []).extend(delta.ids)
        engine.cancel(others.pop(generator.randrange(len(others))))
    for delta in run_to_the_end(engine):
        found.setdefault(delta.request_id, []).extend(delta.ids)
    assert [tuple(found[i]) for i in ids] == [completion.ids for completion in alone]


def test_logprobs_are_those_of_the_whole_forward(model: Transformer):
    prompts = random_documents([6, 13, 2])
    changes: list[dict[str, Any]] = [
        {"logprobs": 3},
        {"logprobs": 0, "temperature": 1.5, "top_k": 5, "seed": 1},
        {},
    ]
    requests = [request(p, **c) for p, c in zip(prompts, changes, strict=True)]
    completions = engine_of(model).generate(requests)
    for prompt, count, found in zip(prompts[:2], (3, 0), completions[:2], strict=True):
        expected_TV = whole(model, [*prompt, *found.ids[:-1]])[len(prompt) - 1 :].log_softmax(-1)
        assert [entry.id for entry in found.logprobs] == list(found.ids)
        for entry, expected_V in zip(found.logprobs, expected_TV, strict=True):
            assert entry.logprob == pytest.approx(float(expected_V[entry.id]), abs=1e-4)
            values, ids = expected_V.topk(count)
            assert [token for token, _ in entry.top] == ids.tolist()
            assert [value for _, value in entry.top] == pytest.approx(values.tolist(), abs=1e-4)
    assert completions[2].logprobs == ()


def test_adapters_are_switched_by_request(model: Transformer):
    """Each as with its adapter active for all; nobody finds another's keys and values."""
    adapters = LoadedAdapters(model)
    for seed, name in enumerate(("poet", "clerk")):
        adapters.add(name, random_adapter(model.config, seed=seed))
    prompts = random_documents([40, 12, 40, 25])
    prompts += prompts
    names = ["poet", None, "clerk", "poet", None, "clerk", None, "clerk"]
    requests = [
        dataclasses.replace(request(p, new=10), adapter=name)
        for p, name in zip(prompts, names, strict=True)
    ]
    engine = engine_of(model, 3, max_prefill=30, adapters=adapters)
    completions = engine.generate([*requests, *requests])
    assert len({c.ids for c in completions[:8]}) == 8, "adapters and prompts must show"
    for name in ("poet", "clerk", None):
        adapters.activate({} if name is None else {name: 1.0})
        for sent, completion in zip([*requests, *requests], completions, strict=True):
            if sent.adapter == name:
                check_greedy(model, sent.prompt_ids, completion)
    with pytest.raises(ConfigError, match="'cook' is not loaded; loaded: poet, clerk"):
        engine.submit(dataclasses.replace(requests[0], adapter="cook"))


def test_an_adapter_removed_meanwhile_fails_those_who_wanted_it(model: Transformer):
    adapters = LoadedAdapters(model)
    adapters.add("poet", random_adapter(model.config))
    engine = engine_of(model, 3, adapters=adapters)
    poet = engine.submit(dataclasses.replace(request([5, 6], new=4), adapter="poet"))
    plain = engine.submit(request([5, 6], new=4))
    engine.step()
    adapters.remove("poet")
    deltas = [delta for _ in range(8) for delta in engine.step()]
    ended = {d.request_id: d.finish_reason for d in deltas if d.finish_reason}
    assert ended == {poet: "error", plain: "length"}


def test_stop_ids_end_it_and_are_not_given_out(model: Transformer):
    (all_of_it,) = engine_of(model).generate([request([5, 6], new=12)])
    at = next(i for i, token in enumerate(all_of_it.ids) if token != all_of_it.ids[0])
    stopped = request([5, 6], new=12, stop_ids=(all_of_it.ids[at],))
    (found,) = engine_of(model).generate([stopped])
    assert found.ids == all_of_it.ids[:at]
    assert (found.finish_reason, found.completion_tokens) == ("stop", at + 1)


def test_the_limit_counts_new_tokens(model: Transformer):
    for limit in (0, 1, 9):
        (found,) = engine_of(model).generate([request([5, 6], new=limit)])
        assert len(found.ids) == found.completion_tokens == limit
        assert (found.finish_reason, found.prompt_tokens) == ("length", 2)


def test_a_batch_that_fails_does_not_take_the_engine_with_it(model: Transformer):
    prompts = random_documents([5, 6, 7])
    engine = engine_of(model, 2)
    ids = [engine.submit(request(p, new=4)) for p in prompts]
    engine.step()
    assert fail_a_step(engine, model) == {ids[0]: "error", ids[1]: "error"}
    check_greedy(model, prompts[2], Completion.join(run_to_the_end(engine)))
    check_greedy(model, prompts[0], engine.generate([request(prompts[0])])[0])


@pytest.mark.parametrize("fast_decode", [True, False])
def test_logits_that_are_no_numbers_end_that_request(fast_decode: bool):
    # An embedding is no number; a head tied to it would make all logits so.
    untied = random_model(small_config(tie_word_embeddings=False)).eval()
    with torch.no_grad():
        untied.embed_tokens.weight[7] = float("nan")
    engine = engine_of(untied, fast_decode=fast_decode)
    bad, good = engine.generate(
        [request([3, 7, *[4] * 20], logprobs=1), request([3, 4], logprobs=1)]
    )
    assert (bad.finish_reason, bad.ids, bad.logprobs) == ("error", (), ())
    check_greedy(untied, [3, 4], good)
    assert len(good.logprobs) == len(good.ids)
    # Longer ones beside what comes into that slot: its end is then read, and must not count.
    prompts = [[3, 5], *random_documents([40, 40, 40])]
    prompts = [[token for token in prompt if token != 7] for prompt in prompts]
    for prompt, found in zip(prompts, engine.generate(map(request, prompts)), strict=True):
        check_greedy(untied, prompt, found)


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        (request([]), ["prompt is empty"]),
        (request([5] * 30, new=31), ["30", "31", "slot of 60", "max_tokens", "max_batch"]),
        (request([5] * 100, new=101), ["100", "101", "context of 200"]),
        (request([5, V]), [f"token {V}", f"0 to {V - 1}"]),
        (request([5, -1]), ["token -1"]),
        (
            GenerationRequest(prompt_ids=[5], params=SamplingParams(), adapter="poet"),
            ["'poet'", "not loaded", "loaded: none"],
        ),
    ],
)
def test_what_cannot_be_served_is_refused(refused: GenerationRequest, words: list[str]):
    model = random_model(small_config(max_position_embeddings=200))
    engine = engine_of(model, 2, slot=60)
    with pytest.raises(ConfigError) as caught:
        engine.submit(refused)
    for word in words:
        assert word in str(caught.value)
    assert not engine.has_work
    assert engine.max_sequence == 60


@pytest.mark.parametrize("name", ["max_batch", "max_prefill", "max_tokens"])
def test_sizes_below_one_are_refused(model: Transformer, name: str):
    with pytest.raises(ConfigError, match=name):
        BatchEngine(model, tokenizer(), **{"max_batch": 2, name: 0})  # type: ignore[arg-type]

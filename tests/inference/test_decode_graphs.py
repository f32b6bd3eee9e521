"""What a CUDA graph of decoding holds, run without one; the graphs themselves need a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from grammars import compiled
from replayed_steps import (
    ALL_SETTINGS,
    SETTINGS,
    Replayed,
    check_same,
    completions,
    mixed_requests,
    note_calls,
)
from small_engines import (
    check_greedy,
    engine_of,
    fail_a_step,
    request,
    run_to_the_end,
)
from small_models import FAMILIES, random_documents, random_model, small_config

from minimind.inference import model_runner
from minimind.inference.decode_graphs import DecodeGraphs, decode_inputs, graph_inputs
from minimind.inference.grammar_texts import AnswerForm, regex_rules
from minimind.inference.request import Completion
from minimind.model.cached_attention import Piece, SlotPlan
from minimind.model.kv_cache import KVCache
from minimind.model.transformer import Transformer

CPU = torch.device("cpu")


@pytest.mark.parametrize(("batch", "length"), [(3, 33), (4, 40), (8, 64)])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_batch_is_the_batch(family: str, batch: int, length: int):
    """The same logits and the same cache as by views of it."""
    model = random_model(small_config(family)).eval()
    caches = [KVCache(model.config, 6, 64, dtype=torch.float32, device=CPU) for _ in range(2)]
    slots, lengths = (1, 2, 5), (4, 32, 17)
    documents = random_documents([n + 1 for n in lengths])
    prompts = [Piece(slot=s, start=0, count=n) for s, n in zip(slots, lengths, strict=True)]
    prompt_ids = torch.tensor([i for d in documents for i in d[:-1]])
    for cache in caches:
        model.decode(prompt_ids, cache, SlotPlan.build(prompts, cache.num_kv_heads, 64, CPU))
    nexts = [Piece(slot=s, start=n, count=1) for s, n in zip(slots, lengths, strict=True)]
    ids = [document[-1] for document in documents]
    by_views, by_gathering = caches
    plan = SlotPlan.build(nexts, by_views.num_kv_heads, 64, CPU)
    expected = model.decode(torch.tensor(ids), by_views, plan)
    inputs_3B = torch.tensor(graph_inputs(ids, nexts, batch))
    assert inputs_3B.shape == (3, batch)
    found = decode_inputs(model, by_gathering, inputs_3B, length)
    torch.testing.assert_close(found[:3], expected, atol=1e-5, rtol=1e-4)
    for one, other in zip(by_views.layers, by_gathering.layers, strict=True):
        torch.testing.assert_close(one.keys_SKCH, other.keys_SKCH, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(one.values_SKCH, other.values_SKCH, atol=1e-5, rtol=1e-4)


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> Replayed:
    return Replayed(monkeypatch)


@pytest.mark.parametrize("fast_decode", [True, False])
@pytest.mark.parametrize("max_batch", [1, 3, 5, 16])
def test_steps_as_a_gpu_takes_them_change_nothing(
    model: Transformer, max_batch: int, fast_decode: bool, monkeypatch: pytest.MonkeyPatch
):
    """Settings, random numbers and tokens that stay on the device, steps begun before the tokens of
    the step before are read, batches filled up: what the host alone would make."""
    requests = mixed_requests()
    expected = completions(engine_of(model, max_batch, fast_decode=False), requests)
    assert {one.finish_reason for one in expected} == {"stop", "length"}
    replayed = Replayed(monkeypatch)
    engine = engine_of(model, max_batch, fast_decode=fast_decode)
    assert engine._runner.can_go_on is False
    for _ in range(2):  # the second time in slots that were used
        check_same(completions(engine, requests), expected)
    assert (replayed.replayed > 0) == fast_decode
    assert engine.stats.free_slots == max_batch


def test_a_step_that_cannot_be_captured_runs_as_it_is(
    model: Transformer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    requests = mixed_requests()
    expected = completions(engine_of(model, fast_decode=False), requests)

    def fail(*arguments: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(model_runner, "computes_apart", lambda device: True)
    monkeypatch.setattr(DecodeGraphs, "_capture", fail)
    with caplog.at_level("WARNING"):
        check_same(completions(engine_of(model), requests), expected)
    assert [record.message for record in caplog.records] == [
        "decoding without CUDA graphs: operation not permitted when stream is capturing"
    ]


def test_where_the_same_sequences_go_on_the_host_sends_nothing(
    model: Transformer, replayed: Replayed, monkeypatch: pytest.MonkeyPatch
):
    """One graph a step, no numbers from the host, and one read, behind which the next step has
    begun."""
    engine = engine_of(model, 8, slot=200)
    for one in SETTINGS:
        engine.submit(request([5, 6, 7], new=60, seed=1, **one))
    for _ in range(5):
        engine.step()
    events = note_calls(monkeypatch, engine)
    before = replayed.captured, replayed.replayed
    for _ in range(20):
        assert len(engine.step()) == len(SETTINGS)
    assert events == ["launch", "read"] * 20
    assert (replayed.captured, replayed.replayed) == (before[0], before[1] + 20)


def test_where_a_grammar_holds_one_the_forward_begins_before_the_tokens_are_read(
    model: Transformer, replayed: Replayed, monkeypatch: pytest.MonkeyPatch
):
    """Two graphs a step: what is allowed is found between them, while the first goes on."""
    engine = engine_of(model, 4, slot=200)
    held = compiled(AnswerForm(content=regex_rules("[!-~]{150,}")), model.config.vocab_size)
    for one in (*SETTINGS[:2], {"grammar": held, "temperature": 1.0}):
        engine.submit(request([5, 6, 7], new=60, seed=1, **one))
    for _ in range(5):
        engine.step()
    events = note_calls(monkeypatch, engine, (engine._runner.sampler._masks, "find"))
    before = replayed.captured, replayed.replayed
    for _ in range(20):
        assert len(engine.step()) == 3
    assert events == ["launch", "read", "find"] * 20
    assert (replayed.captured, replayed.replayed) == (before[0], before[1] + 40)


def test_those_who_come_and_leave_while_a_step_is_on_its_way(
    model: Transformer, replayed: Replayed
):
    """A slot goes to another sequence while a step of its last one has begun; nobody notices."""
    prompts = random_documents([9, 30, 4, 21])
    requests = [
        request(p, new=20, seed=i, temperature=1.0, repetition_penalty=1.2)
        for i, p in enumerate(prompts)
    ]
    expected = [completions(engine_of(model, 1), [one])[0].ids for one in requests]
    engine = engine_of(model, 2)
    found: dict[int, list[int]] = {}

    def step() -> None:
        for delta in engine.step():
            found.setdefault(delta.request_id, []).extend(delta.ids)

    first, second = engine.submit(requests[0]), engine.submit(requests[1])
    for _ in range(6):
        step()
    assert engine._ahead is not None
    engine.cancel(first)
    third = engine.submit(requests[2])
    ended_at_once = engine.submit(request([5], new=0))
    while engine.has_work:
        step()
    fourth = engine.submit(requests[3])
    while engine.has_work:
        step()
    ids = {i: tuple(found[i]) for i in (second, third, fourth)}
    assert ids == {second: expected[1], third: expected[2], fourth: expected[3]}
    assert tuple(found[first]) == expected[0][: len(found[first])]
    assert found[ended_at_once] == []
    engine.refresh()


def test_a_step_that_fails_takes_the_one_behind_it_along(model: Transformer, replayed: Replayed):
    engine = engine_of(model, 2)
    asked = [request(p, new=12) for p in random_documents([5, 6, 7])]
    ids = [engine.submit(one) for one in asked]
    for _ in range(5):
        engine.step()
    assert fail_a_step(engine, model) == {ids[0]: "error", ids[1]: "error"}
    check_greedy(model, asked[2].prompt_ids, Completion.join(run_to_the_end(engine)))


@pytest.mark.gpu
@pytest.mark.parametrize("settings", ALL_SETTINGS, ids=lambda one: ",".join(one) or "greedy")
def test_graphs_change_nothing(settings: dict[str, Any]):
    model = random_model(small_config()).eval().cuda()
    prompts = random_documents([5, 40, 1, 17, 33, 300, 2])
    requests = [
        request(p, new=n, seed=n, **settings)
        for p, n in zip(prompts, (30, 9, 20, 30, 3, 30, 25), strict=True)
    ]
    graphs, plain = (
        completions(engine_of(model, 5, slot=400, fast_decode=fast), requests)
        for fast in (True, False)
    )
    check_same(graphs, plain)


@pytest.mark.gpu
@pytest.mark.parametrize("kinds", [SETTINGS, ALL_SETTINGS], ids=["free", "held"])
def test_a_step_on_a_gpu_waits_once(kinds: list[dict[str, Any]]):
    """Where PyTorch raises an error at every wait that it knows of but that of an event."""
    engine = engine_of(random_model(small_config()).eval().cuda(), len(kinds), slot=200)
    form = AnswerForm(content=regex_rules("[!-~]{150,}"))
    grammar = compiled(form, small_config().vocab_size)
    for one in kinds:
        one = {**one, "grammar": grammar} if "grammar" in one else one
        engine.submit(request([5, 6, 7], new=60, seed=1, **one))
    for _ in range(5):
        engine.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(20):
            assert len(engine.step()) == len(kinds)
    finally:
        torch.cuda.set_sync_debug_mode("default")

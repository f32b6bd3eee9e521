"""Who waits, who goes on, and that whoever leaves is gone."""

from __future__ import annotations

import random
from typing import Any

import pytest
from small_engines import check_greedy, engine_of, request
from small_models import random_documents

from minimind.model.transformer import Transformer


def test_more_than_there_is_room_for_waits(model: Transformer):
    prompts = random_documents([4] * 9)
    engine = engine_of(model, 2)
    ids = [engine.submit(request(p, new=3)) for p in prompts]
    assert (engine.stats.running, engine.stats.waiting) == (0, 9)
    ended: list[int] = []
    while engine.has_work:
        ended += [d.request_id for d in engine.step() if d.finish_reason]
        stats = engine.stats
        assert stats.running + stats.free_slots == 2
        assert stats.running + stats.waiting + len(ended) == 9
    assert ended == ids, "first come, first served"


def test_a_long_prompt_does_not_hold_up_those_that_run(model: Transformer):
    short, long = random_documents([4, 90])
    engine = engine_of(model, 2, max_prefill=10)
    first = engine.submit(request(short, new=12))
    engine.step()
    second = engine.submit(request(long, new=2))
    steps = [{d.request_id for d in engine.step()} for _ in range(10)]
    assert all(first in step for step in steps)
    assert [second in step for step in steps] == [False] * 8 + [True, True]


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_a_cancelled_request_frees_its_slot(model: Transformer, steps: int):
    prompts = random_documents([30, 6, 5])
    engine = engine_of(model, 2, max_prefill=16)
    ids = [engine.submit(request(p, new=20)) for p in prompts]
    for _ in range(steps):
        engine.step()
    engine.cancel(ids[0])
    engine.cancel(ids[2])
    engine.cancel(999)
    reasons = {d.request_id: d.finish_reason for d in engine.step() if d.finish_reason}
    assert reasons == {ids[0]: "cancelled", ids[2]: "cancelled"}
    assert (engine.stats.running, engine.stats.waiting, engine.stats.free_slots) == (1, 0, 1)
    engine.cancel(ids[1])
    engine.step()
    (completion,) = engine.generate([request(prompts[0], new=5)])
    check_greedy(model, prompts[0], completion)


def test_a_cancel_that_comes_while_a_step_begins_is_not_lost(
    model: Transformer, monkeypatch: pytest.MonkeyPatch
):
    engine = engine_of(model, 2)
    engine.submit(request([5, 6], new=9))
    plain, late = engine._cancelled, []

    def cancelled(*arguments: Any) -> Any:
        """Another thread's calls, after the step has taken in what was submitted."""
        if not late:
            late.append(engine.submit(request([7], new=9)))
            engine.cancel(late[0])
        return plain(*arguments)

    monkeypatch.setattr(engine, "_cancelled", cancelled)
    engine.step()
    reasons = {delta.request_id: delta.finish_reason for delta in engine.step()}
    assert reasons[late[0]] == "cancelled"


def test_many_mixed_requests_leak_nothing(model: Transformer):
    """A third of them cancelled at some moment; all end once, with the right counts."""
    generator = random.Random(1)
    engine = engine_of(model, 5, max_prefill=24)
    wanted: dict[int, int] = {}
    reasons: dict[int, str] = {}
    made: dict[int, int] = {}
    for prompt in random_documents([generator.randrange(1, 60) for _ in range(80)]):
        new = generator.randrange(0, 15)
        temperature = generator.choice([0.0, 1.0])
        wanted[engine.submit(request(prompt, new, temperature=temperature))] = new
        if generator.random() < 0.33:
            engine.cancel(generator.choice(list(wanted)))
        for delta in engine.step() if generator.random() < 0.7 else []:
            assert delta.request_id not in reasons, "nothing comes after the end"
            made[delta.request_id] = delta.completion_tokens
            if delta.finish_reason:
                reasons[delta.request_id] = delta.finish_reason
    while engine.has_work:
        for delta in engine.step():
            assert delta.request_id not in reasons
            made[delta.request_id] = delta.completion_tokens
            if delta.finish_reason:
                reasons[delta.request_id] = delta.finish_reason
    assert set(reasons) == set(wanted)
    assert set(reasons.values()) == {"length", "cancelled"}
    assert all(made[i] == wanted[i] for i, reason in reasons.items() if reason == "length")
    assert engine.stats.completion_tokens == sum(made.values())
    assert (engine.stats.running, engine.stats.waiting, engine.stats.free_slots) == (0, 0, 5)


def test_a_closed_stream_is_cancelled(model: Transformer):
    engine = engine_of(model)
    stream = engine.stream(request([5, 6], new=50))
    assert next(stream).completion_tokens == 1
    stream.close()
    assert not engine.has_work
    assert engine.stats.free_slots == 4

"""What is in the cache is not computed again, and what was there longest is given up."""

from __future__ import annotations

from unittest import mock

import pytest
from small_engines import check_greedy, engine_of, request
from small_models import random_documents

from minimind.inference.request import Completion
from minimind.model.transformer import Transformer


def test_a_prefix_that_is_there_is_not_computed_again(model: Transformer):
    (system, first, second) = random_documents([30, 5, 6])
    engine = engine_of(model, 2)
    (turn,) = engine.generate([request([*system, *first], new=7)])
    assert turn.cached_tokens == 0
    chat = [*system, *first, *turn.ids, *second]
    (again,) = engine.generate([request(chat, new=7)])
    # The last token that a request makes is never computed.
    assert again.cached_tokens == 30 + 5 + 6
    check_greedy(model, chat, again)
    (whole_prompt,) = engine.generate([request(chat, new=7)])
    assert whole_prompt.cached_tokens == len(chat) - 1
    assert whole_prompt.ids == again.ids
    (branch,) = engine.generate([request([*system, *second], new=7)])
    assert branch.cached_tokens == 30
    check_greedy(model, [*system, *second], branch)
    (kept,) = engine.generate([request(chat, new=7)])
    assert kept.cached_tokens == len(chat) - 1, "a copy took the other slot"
    assert engine.stats.cached_tokens == 41 + 2 * (len(chat) - 1) + 30


def test_what_an_interrupted_step_would_have_computed_is_not_found(
    model: Transformer, monkeypatch: pytest.MonkeyPatch
):
    """As when Ctrl-C ends an answer in a chat, which goes on over the same engine."""
    (prompt,) = random_documents([40])
    engine = engine_of(model, 2, max_prefill=16)
    stream = engine.stream(request(prompt, new=9))
    with monkeypatch.context() as patch:
        patch.setattr(model, "decode", mock.Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            next(stream)
        stream.close()
    (again,) = engine.generate([request(prompt, new=9)])
    check_greedy(model, prompt, again)
    assert again.cached_tokens == 0
    assert engine.stats.free_slots == 2


def test_a_prefix_is_shared_with_one_that_runs(model: Transformer):
    (system, first, second) = random_documents([40, 3, 4])
    engine = engine_of(model, 2)
    engine.submit(request([*system, *first], new=20))
    engine.step()
    other = engine.submit(request([*system, *second], new=5))
    deltas = [delta for _ in range(5) for delta in engine.step() if delta.request_id == other]
    assert {delta.cached_tokens for delta in deltas} == {40}
    check_greedy(model, [*system, *second], Completion.join(deltas))


def test_the_same_prompt_at_once_is_computed_once(model: Transformer):
    system, *questions = random_documents([90, 1, 2, 3])
    prompts = [[*system, *question] for question in questions]
    engine = engine_of(model, 3, slot=120, max_prefill=45)
    completions = engine.generate([request(p, new=6) for p in prompts])
    assert [c.cached_tokens for c in completions] == [0, 90, 90]
    for prompt, completion in zip(prompts, completions, strict=True):
        check_greedy(model, prompt, completion)


def test_the_slot_that_rested_longest_is_given_up(model: Transformer):
    short, long, other, new = random_documents([20, 40, 40, 15])
    engine = engine_of(model, 3)
    for prompt in (short, long, other, short):
        engine.generate([request(prompt, new=2)])
    engine.generate([request(new, new=2)])
    (kept, gone) = engine.generate([request(short, new=2), request(long, new=2)])
    assert (kept.cached_tokens, gone.cached_tokens) == (19, 0)


def test_who_waits_for_a_prompt_goes_on_when_it_is_cancelled(model: Transformer):
    (prompt,) = random_documents([100])
    engine = engine_of(model, 2, slot=120, max_prefill=40)
    first, second = (engine.submit(request(prompt, new=3)) for _ in range(2))
    engine.step()
    assert (engine.stats.running, engine.stats.waiting) == (1, 1)
    engine.cancel(first)
    deltas = [engine.step() for _ in range(4)]
    assert [d.finish_reason for d in deltas[0]] == ["cancelled"]
    completion = Completion.join(d for step in deltas for d in step if d.request_id == second)
    assert completion.cached_tokens == 40
    check_greedy(model, prompt, completion)

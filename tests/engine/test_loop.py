"""The training loop by itself: what it records, when it saves and validates, how it ends."""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from fake_engine import (
    EVAL_DATA,
    STEPS,
    TARGETS,
    TOKENS,
    UPDATE,
    FakeEngine,
    Trial,
    bad_at,
    full_disk,
    interrupted_at,
)
from small_models import pack

from minimind.engine import loop as loop_module
from minimind.engine.callbacks import RunState
from minimind.engine.deepspeed_engine import DeepSpeedEngine
from minimind.errors import TrainingError
from minimind.runtime.memory import PeakMemory
from minimind.runtime.ranks import Ranks
from minimind.types import Batch

SECOND_SHARE = TARGETS[1] / sum(TARGETS)
"""The second micro-batch has this share of a step's targets, each with a loss that is 1 higher."""


class EarlierHandlerError(Exception):
    """Tells that a signal met the handler from before the loop."""


@pytest.fixture(autouse=True)
def _signal_handlers() -> Iterator[None]:
    """Sets handlers, which must be there again after each test, however its loops ended."""

    def handler(*_: object) -> None:
        raise EarlierHandlerError

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, handler) for number in numbers]
    yield
    after = [signal.signal(*pair) for pair in zip(numbers, before, strict=True)]
    assert after == [handler, handler]


@pytest.fixture(autouse=True)
def _without_the_slow_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at all objects of the test process takes longer than all these tests."""
    monkeypatch.setattr(PeakMemory, "measured", lambda memory: contextlib.nullcontext())
    monkeypatch.setattr(loop_module, "freeze_objects", lambda: None)


def test_a_step_divides_its_sums_by_its_count(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    trial = Trial()
    assert trial.loop.run()
    assert trial.steps("record") == [1, 2, 3, 4, 5, 6]
    for before, stats in enumerate(trial.stats):
        assert stats.loss == pytest.approx(before + SECOND_SHARE)
        assert stats.metrics == {"place": pytest.approx(SECOND_SHARE)}
        assert stats.tokens == (before + 1) * TOKENS
        assert stats.grad_norm == before + 1
        assert f"step {before + 1}/6  loss {before + SECOND_SHARE:.4f}" in caplog.text
    assert trial.engine.calls[4:8] == ["start 9", "backward 2", "backward 14", "step 0.5"]


@pytest.mark.parametrize("given", [True, False])
def test_the_learning_rate_is_that_of_the_step(given: bool):
    trial = Trial(learning_rate=(lambda step: 1.0 + step) if given else None, total_steps=3)
    trial.loop.run()
    expected = [1.0, 2.0, 3.0] if given else [0.5, 0.25, 0.125]
    assert [stats.learning_rate for stats in trial.stats] == expected
    steps = [call for call in trial.engine.calls if call.startswith("step")]
    assert steps == [f"step {rate if given else None}" for rate in expected]


def test_ranks_are_summed_and_the_first_one_records():
    alone, first, second = (
        Trial(engine=FakeEngine(Ranks(rank, rank, size))) for rank, size in ((0, 1), (0, 2), (1, 2))
    )
    for trial in (alone, first, second):
        trial.loop.run()
    assert first.engine.calls[0] == "start 18"
    assert [stats.loss for stats in first.stats] == [stats.loss for stats in alone.stats]
    assert [stats.tokens for stats in first.stats] == [2 * stats.tokens for stats in alone.stats]
    assert second.did == [("save", STEPS, False)]
    # What dropout draws depends on a micro-batch's place in the step of all ranks, and on nothing
    # else: the first one of each rank draws what one rank's first two do.
    drawn = [(one.stage.drawn[::2], one.stage.drawn[1::2]) for one in (alone, first, second)]
    assert (drawn[1][0], drawn[2][0]) == drawn[0]
    assert len({*first.stage.drawn, *second.stage.drawn}) == 4 * STEPS


def test_what_is_due_after_each_step():
    trial = Trial(total_steps=7, eval_every=2, save_every=3, sample_every=4)
    assert trial.loop.run()
    val_loss = pytest.approx(1.0 + SECOND_SHARE)
    assert trial.did == [
        ("record", 1, None),
        *[("record", 2, val_loss), ("save", 2, True)],
        *[("record", 3, None), ("save", 3, False)],
        *[("record", 4, val_loss), ("sample", 4)],
        ("record", 5, None),
        *[("record", 6, val_loss), ("save", 6, False)],
        *[("record", 7, val_loss), ("sample", 7), ("save", 7, False)],
    ]


def test_a_step_is_recorded_before_the_texts_after_it():
    """W&B takes no step that is less than one it has."""
    trial = Trial(total_steps=3, eval_every=0, sample_every=2)
    assert trial.loop.run()
    assert [event[:2] for event in trial.did] == [
        *[("record", 1), ("record", 2), ("sample", 2)],
        *[("record", 3), ("sample", 3), ("save", 3)],
    ]


@pytest.mark.parametrize(("eval_data", "eval_every"), [(EVAL_DATA, 0), (None, 1)])
def test_nothing_is_due_but_the_last_checkpoint(eval_data: Sequence[Batch] | None, eval_every: int):
    trial = Trial(eval_data=eval_data, eval_every=eval_every)
    assert trial.loop.run()
    records = [("record", step, None) for step in range(1, STEPS + 1)]
    assert trial.did == [*records, ("save", STEPS, False)]


def test_a_validation_runs_in_eval_mode_and_the_next_step_in_training_mode():
    trial = Trial(eval_every=3)
    trial.loop.run()
    assert trial.stage.with_gradient == [False] * 4, "two micro-batches, after steps 3 and 6"
    assert len(trial.stage.drawn) == 2 * STEPS


def test_the_best_validation_is_saved_and_one_that_is_no_number_is_never_the_best():
    trial = Trial(eval_every=1)
    losses = [math.nan, 3.0, 4.0, 2.0, math.nan, 2.0]
    trial.stage.val_value = lambda steps: losses[steps - 1]
    assert trial.loop.run()
    saves = [event[1:] for event in trial.did if event[0] == "save"]
    assert saves == [(2, True), (4, True), (6, False)]
    assert trial.saved.best_val_loss == pytest.approx(2.0 + SECOND_SHARE)


def test_a_validation_without_a_target_ends_the_run():
    trial = Trial(eval_every=2, eval_data=[pack([[[0]]], seq_len=12)])
    with pytest.raises(TrainingError, match="validation data holds no target"):
        trial.loop.run()


def test_a_resumed_run_takes_the_steps_that_are_left():
    whole = Trial(eval_every=3)
    whole.loop.run()
    resumed = Trial(eval_every=3, state=RunState(3, 3 * TOKENS, best_val_loss=0.5))
    assert resumed.loop.run()
    assert resumed.loader.reads == [(3, STEPS, False)]
    assert resumed.did == [event for event in whole.did if event[1] > 3]
    for name in ("loss", "tokens", "learning_rate"):
        expected = [getattr(stats, name) for stats in whole.stats[3:]]
        assert [getattr(stats, name) for stats in resumed.stats] == expected
    assert resumed.stage.drawn == whole.stage.drawn[6:]
    assert resumed.saved == RunState(STEPS, STEPS * TOKENS, best_val_loss=0.5)


@pytest.mark.parametrize(("first", "total", "step"), [(0, 6, 1), (0, 1, 0), (3, 6, 4), (5, 6, 5)])
def test_memory_is_measured_in_the_second_step(
    monkeypatch: pytest.MonkeyPatch, first: int, total: int, step: int
):
    """Or in the last one, where there is no second."""
    trial, measured = Trial(state=RunState(first), total_steps=total), []

    def measure(memory: PeakMemory) -> contextlib.AbstractContextManager[None]:
        measured.append(trial.loop.state.step)
        return contextlib.nullcontext()

    monkeypatch.setattr(PeakMemory, "measured", measure)
    trial.loop.run()
    assert measured == [step]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("step", "micro", "last_calls"),
    [
        (0, 0, ["start 9", "backward 0"]),
        (2, 0, ["step 0.5", "start 9", "backward 4"]),
        (2, 1, ["backward 4", "backward 21", f"step {1 / 3}"]),
    ],
)
def test_an_interrupt_gives_up_the_step_and_saves_the_one_before(
    number: int, step: int, micro: int, last_calls: list[str]
):
    trial = Trial()
    trial.stage.value = interrupted_at(step, micro, number)
    assert not trial.loop.run()
    assert trial.engine.calls[-3:] == last_calls
    done = step + micro  # after its last micro-batch a step is not given up any more
    assert trial.did == [*[("record", s + 1, None) for s in range(done)], ("save", done, False)]
    assert trial.saved == RunState(done, done * TOKENS)
    assert trial.loader.is_closed


def test_an_interrupt_of_another_rank_gives_up_the_step_too():
    trial = Trial(engine=FakeEngine(others_stop=True))
    assert not trial.loop.run()
    assert trial.did == [("save", 0, False)]


def test_where_ranks_are_not_asked_between_micro_batches_the_next_count_tells_them():
    """As on a GPU: the step during which it comes and the next one are taken."""
    trial = Trial()
    trial.engine.any_rank = lambda flag: False
    trial.stage.value = interrupted_at(2, 0)
    assert not trial.loop.run()
    assert (trial.engine.steps, trial.steps("save")) == (4, [4])


@pytest.mark.parametrize(("first", "saves"), [(0, [2]), (2, [])])
def test_an_interrupt_saves_no_step_twice(first: int, saves: list[int]):
    trial = Trial(save_every=2, state=RunState(first))
    trial.stage.value = interrupted_at(2, 0)
    assert not trial.loop.run()
    assert trial.steps("save") == saves


def test_the_other_signal_does_not_disturb_the_last_save_and_the_same_one_does():
    """The launcher repeats a user's Ctrl-C as SIGTERM."""
    trial, impatient = Trial(), Trial()
    trial.during_save = lambda step: signal.raise_signal(signal.SIGTERM)
    impatient.during_save = lambda step: signal.raise_signal(signal.SIGINT)
    for each in (trial, impatient):
        each.stage.value = interrupted_at(2, 0, signal.SIGINT)
    assert not trial.loop.run()
    with pytest.raises(EarlierHandlerError):
        impatient.loop.run()
    assert (trial.steps("save"), impatient.steps("save")) == ([2], [])


@pytest.mark.parametrize(("bad", "precision"), [(math.nan, "fp32"), (math.inf, "fp16")])
def test_a_loss_that_is_not_finite_names_the_rows_of_its_micro_batch(bad: float, precision: str):
    trial = Trial(engine=FakeEngine(precision=precision), save_every=2)
    trial.stage.value = bad_at(4, 1, bad)
    with pytest.raises(TrainingError, match=rf"^step 5: the loss is {bad} .*: data.jsonl:4100\."):
        trial.loop.run()
    assert trial.loader.described == [(4, 1)]
    assert trial.steps("record") == [1, 2, 3, 4]
    assert trial.steps("save") == [2, 4]
    assert trial.loader.is_closed


def test_a_gradient_that_is_not_finite_names_the_rows_of_every_micro_batch():
    trial = Trial(engine=FakeEngine(norm=lambda steps: math.inf if steps == 3 else 1.0))
    with pytest.raises(TrainingError, match=r"^step 3: .* inf\. .*: data.*2000, data.*2100\. "):
        trial.loop.run()
    assert trial.loader.described == [(2, 0), (2, 1)]
    assert trial.steps("save") == []


def test_at_most_twenty_rows_of_all_ranks_are_named():
    trial = Trial(engine=FakeEngine(others_say=["another.jsonl:7", "data.jsonl:0000"]))
    trial.loader.num_documents = 30
    trial.stage.value = bad_at(0, 0, math.nan)
    with pytest.raises(TrainingError, match=r"another\.jsonl:7, .* and 11 more\.") as error:
        trial.loop.run()
    assert str(error.value).count(".jsonl:") == 20


def test_fp16_goes_on_after_a_gradient_that_overflowed(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    norms = {3: math.inf, 4: math.nan}
    engine = FakeEngine(precision="fp16", loss_scale=512.0, norm=lambda step: norms.get(step, 1.0))
    trial = Trial(engine=engine)
    assert trial.loop.run()
    for step in norms:
        text = f"step {step}: skipped, its gradient overflowed; the loss scale is now 512"
        assert caplog.text.count(text) == 1
    assert trial.steps("record") == [1, 2, 3, 4, 5, 6]


def test_a_step_may_take_several_updates():
    """It is one step to all else: its rate, and what is due after it."""
    trial = Trial(total_steps=4, eval_every=2, save_every=3, sample_every=4)
    trial.stage.num_updates = 3
    assert trial.loop.run()
    assert trial.stage.prepared == [0, 1, 2, 3]
    assert trial.engine.steps == 12
    rates = [call for call in trial.engine.calls if call.startswith("step")]
    assert rates == [f"step {1 / (1 + step)}" for step in range(4) for _ in range(3)]
    assert trial.steps("record") == [1, 2, 3, 4]
    validated = [event[1] for event in trial.did if event[0] == "record" and event[2] is not None]
    assert validated == [2, 4]
    assert trial.steps("save") == [2, 3, 4]
    assert trial.steps("sample") == [4]
    assert trial.saved.step == 4
    assert trial.loader.reads == [(0, 4, False)]


@pytest.mark.parametrize("size", [1, 2])
def test_numbers_of_a_step_are_means_over_its_updates_and_tokens_a_sum(size: int):
    trial = Trial(engine=FakeEngine(Ranks(0, 0, size)), total_steps=3)
    trial.stage.num_updates = 3
    trial.loop.run()
    for step, stats in enumerate(trial.stats):
        assert stats.loss == pytest.approx(step + SECOND_SHARE + UPDATE)
        assert stats.metrics == {"place": pytest.approx(SECOND_SHARE)}
        assert stats.grad_norm == pytest.approx(3 * step + 2)
        assert stats.tokens == (step + 1) * 3 * size * TOKENS
        assert stats.learning_rate == 1 / (1 + step)


def test_each_update_draws_dropout_of_its_own_on_any_number_of_ranks():
    alone, first, second = (
        Trial(engine=FakeEngine(Ranks(rank, rank, size))) for rank, size in ((0, 1), (0, 2), (1, 2))
    )
    for trial in (alone, first, second):
        trial.stage.num_updates = 2
        trial.loop.run()
    assert len({*first.stage.drawn, *second.stage.drawn}) == 2 * 4 * STEPS
    # Two ranks' micro-batches of an update are four: with the first two of them, one rank has two
    # updates.
    places = [0, 2]
    drawn = [one.stage.drawn[at::4] for at in places for one in (first, second)]
    assert drawn[:2] == [alone.stage.drawn[at::4] for at in (0, 1)]
    assert drawn[2] == [*first.stage.drawn[2::4]] != first.stage.drawn[0::4]


@pytest.mark.parametrize(
    ("update", "micro", "steps", "done"), [(0, 0, 3 * 2, 2), (0, 1, 3 * 3, 3), (1, 0, 3 * 3, 3)]
)
def test_an_interrupt_gives_a_step_up_only_before_its_first_update(
    update: int, micro: int, steps: int, done: int
):
    """After the last micro-batch of that update it is not given up any more."""
    trial = Trial()
    trial.stage.num_updates = 3

    def value(step: int, at: int) -> float:
        if (step, trial.stage.update, at) == (2, update, micro):
            signal.raise_signal(signal.SIGINT)
        return 0.0

    trial.stage.value = value
    assert not trial.loop.run()
    assert trial.engine.steps == steps
    assert trial.did[-1] == ("save", done, False)
    assert trial.steps("record") == [*range(1, done + 1)]


def test_an_interrupt_while_a_step_is_prepared_gives_it_up(monkeypatch: pytest.MonkeyPatch):
    trial = Trial()
    prepare = trial.stage.prepare

    def interrupted(engine: DeepSpeedEngine, batches: list[Batch], step: int) -> Iterator[Any]:
        if step == 2:
            signal.raise_signal(signal.SIGTERM)
        yield from prepare(engine, batches, step)

    monkeypatch.setattr(trial.stage, "prepare", interrupted)
    assert not trial.loop.run()
    assert trial.engine.steps == 2
    assert trial.did[-1] == ("save", 2, False)


def test_after_an_interrupt_of_another_rank_nothing_is_prepared():
    trial = Trial(engine=FakeEngine(others_stop=True))
    assert not trial.loop.run()
    assert trial.stage.prepared == []


@pytest.mark.parametrize("update", [0, 1, 2])
def test_a_loss_of_any_update_that_is_not_finite_names_the_rows_of_its_micro_batch(update: int):
    trial = Trial()
    trial.stage.num_updates = 3
    bad = bad_at(4, 1, math.nan)
    trial.stage.value = lambda *place: bad(*place) if trial.stage.update == update else sum(place)
    with pytest.raises(TrainingError, match=r"^step 5: the loss is nan .*: data.jsonl:4100\."):
        trial.loop.run()
    assert trial.loader.described == [(4, 1)]
    assert trial.steps("record") == [1, 2, 3, 4]


def test_a_gradient_of_a_later_update_that_is_not_finite_names_each_row_once():
    trial = Trial(engine=FakeEngine(norm=lambda steps: math.inf if steps == 6 else 1.0))
    trial.stage.num_updates = 3
    with pytest.raises(TrainingError, match=r"^step 2: .* inf\. .*: data.*1000, data.*1100\. "):
        trial.loop.run()
    assert trial.loader.described == [(1, 0), (1, 1)]


def test_what_a_stage_measures_stands_beside_its_step():
    trial = Trial(total_steps=3)
    trial.stage.num_updates = 2
    found = []

    def measured() -> dict[str, float]:
        found.append({"answers": 10.0 * trial.engine.steps})
        return found[-1]

    trial.stage.measured = measured
    trial.loop.run()
    assert [stats.diagnostics for stats in trial.stats] == found
    assert [one["answers"] for one in found] == [20.0, 40.0, 60.0], "once, after the last update"


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    trial, interrupted = Trial(save_every=2), Trial(save_every=2)
    interrupted.stage.value = interrupted_at(2, 0)
    trial.during_save, interrupted.during_save = full_disk(2), full_disk(2)
    assert trial.loop.run()
    assert "the disk is full at 2; training goes on" in caplog.text
    assert not interrupted.loop.run()
    assert (trial.steps("save"), interrupted.steps("save")) == ([4, 6], [2])


@pytest.mark.parametrize(("interrupted", "last"), [(False, STEPS), (True, 2)])
def test_a_full_disk_at_the_last_save_ends_the_run(interrupted: bool, last: int):
    trial = Trial()
    trial.during_save = full_disk(2, STEPS)
    if interrupted:
        trial.stage.value = interrupted_at(2, 0)
    with pytest.raises(TrainingError, match=f"full at {last}"):
        trial.loop.run()


def test_garbage_is_not_collected_within_a_run_and_is_after_it():
    assert gc.isenabled()
    seen: list[bool] = []
    trial, broken = Trial(eval_every=3), Trial(eval_every=3)
    for each in (trial, broken):
        each.stage.value = lambda step, micro: float(seen.append(gc.isenabled()) or 1.0)
        each.stage.val_value = lambda steps: float(seen.append(gc.isenabled()) or 1.0)
    trial.during_save = lambda step: seen.append(gc.isenabled())
    assert trial.loop.run()
    assert gc.isenabled()
    broken.during_save = full_disk(STEPS)
    with pytest.raises(TrainingError, match="the disk is full"):
        broken.loop.run()
    assert gc.isenabled()
    assert len(seen) == 4 * STEPS + 10
    assert not any(seen)


def test_nor_within_a_step_that_is_taken_alone():
    trial, seen = Trial(), []
    trial.stage.value = lambda step, micro: float(seen.append(gc.isenabled()) or 1.0)
    trial.loop.start()
    for micro_batches in trial.loop.read():
        trial.loop.step(micro_batches)
        assert gc.isenabled()
    assert seen == [False] * 2 * STEPS

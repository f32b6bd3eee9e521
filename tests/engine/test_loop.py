"""The training loop by itself: what it records, when it saves and validates, how it ends."""

from __future__ import annotations

import contextlib
import gc
import logging
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from fake_engine import (
    EVAL_DATA,
    SECOND_SHARE,
    STEPS,
    TOKENS,
    FakeEngine,
    Trial,
    bad_at,
    full_disk,
    interrupted_at,
)
from small_models import pack

from minimind.engine.callbacks import RunState
from minimind.errors import TrainingError
from minimind.runtime.memory import PeakMemory
from minimind.runtime.ranks import Ranks
from minimind.types import Batch

pytestmark = pytest.mark.usefixtures("signal_handlers", "without_the_slow_parts")


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


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_as_many_bad_steps_are_skipped_as_the_recipe_lets(
    bad: float, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    trial = Trial(skip_steps=2)
    trial.stage.value = lambda step, micro: bad if step in (1, 4) and micro else step + micro
    skipped: list[tuple[int, list[str]]] = []
    trial.loop.callbacks = replace(
        trial.loop.callbacks, skip=lambda step, loss, norm, rows: skipped.append((step, rows))
    )
    assert trial.loop.run()
    assert [step for step, _ in skipped] == [2, 5]
    assert skipped[0][1] == ["data.jsonl:1100"]
    assert trial.saved.skipped_steps == 2
    assert trial.steps("record") == [1, 2, 3, 4, 5, 6]
    assert f"step 2: the loss is {bad}" in caplog.text
    assert "skipped, the weights stay as they were (1 of 2). Rows: data.jsonl:1100" in caplog.text


def test_one_bad_step_too_many_ends_the_run_also_where_a_checkpoint_counted_the_others():
    trial = Trial(skip_steps=2, state=RunState(skipped_steps=1))
    trial.stage.value = lambda step, micro: math.nan if step >= 2 else 1.0
    with pytest.raises(TrainingError, match=r"^step 4: .* 2 steps were skipped before"):
        trial.loop.run()

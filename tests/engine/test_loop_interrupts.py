"""Interrupts of the training loop: which step is given up, and what is saved."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest
from fake_engine import TOKENS, FakeEngine, Trial, interrupted_at

from minimind.engine.callbacks import RunState
from minimind.engine.deepspeed_engine import DeepSpeedEngine
from minimind.types import Batch

pytestmark = pytest.mark.usefixtures("signal_handlers", "without_the_slow_parts")


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


def test_the_other_signal_does_not_disturb_the_last_save_and_the_same_one_does(
    signal_handlers: type[Exception],
):
    """The launcher repeats a user's Ctrl-C as SIGTERM."""
    trial, impatient = Trial(), Trial()
    trial.during_save = lambda step: signal.raise_signal(signal.SIGTERM)
    impatient.during_save = lambda step: signal.raise_signal(signal.SIGINT)
    for each in (trial, impatient):
        each.stage.value = interrupted_at(2, 0, signal.SIGINT)
    assert not trial.loop.run()
    with pytest.raises(signal_handlers):
        impatient.loop.run()
    assert (trial.steps("save"), impatient.steps("save")) == ([2], [])


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

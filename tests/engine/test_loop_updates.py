"""Steps of the training loop that take several updates."""

from __future__ import annotations

import math

import pytest
from fake_engine import SECOND_SHARE, STEPS, TOKENS, UPDATE, FakeEngine, Trial, bad_at

from minimind.errors import TrainingError
from minimind.runtime.ranks import Ranks

pytestmark = pytest.mark.usefixtures("signal_handlers", "without_the_slow_parts")


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

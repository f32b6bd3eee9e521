"""Which losses are spikes."""

from __future__ import annotations

import math

import pytest

from minimind.engine.spikes import LossSpikeError, SpikeWatch
from minimind.errors import TrainingError


def watch_after(losses: int, deviations: float = 6.0, returns: int = 0) -> SpikeWatch:
    """Gives a watch that has seen losses of mean 2 and standard deviation 0.1."""
    watch = SpikeWatch(deviations, returns)
    for step in range(losses):
        watch.check(step, 2.0 + (0.1 if step % 2 else -0.1), has_checkpoint=True)
    return watch


def test_a_jump_is_found_and_a_loss_within_the_limit_is_not():
    watch_after(50).check(51, 2.59, has_checkpoint=True)
    with pytest.raises(
        LossSpikeError, match=r"^step 51: the loss is 2.6100, 6.1 standard"
    ) as found:
        watch_after(50).check(51, 2.61, has_checkpoint=True)
    assert found.value.passed_over == (50, 51)


def test_a_loss_that_hardly_varies_has_a_least_spread():
    watch = SpikeWatch(5.0, 0)
    for step in range(50):
        watch.check(step, 2.0, has_checkpoint=True)
    watch.check(51, 2.09, has_checkpoint=True)
    with pytest.raises(LossSpikeError):
        watch.check(52, 2.2, has_checkpoint=True)


@pytest.mark.parametrize(
    ("losses", "deviations", "has_checkpoint"), [(50, 0.0, True), (19, 6.0, True), (50, 6.0, False)]
)
def test_without_the_option_enough_losses_or_a_checkpoint_nothing_is_a_spike(
    losses: int, deviations: float, has_checkpoint: bool
):
    watch_after(losses, deviations).check(60, 100.0, has_checkpoint=has_checkpoint)


def test_what_is_not_finite_is_no_spike_and_spoils_no_mean():
    watch = watch_after(50)
    watch.check(51, math.nan, has_checkpoint=True)
    watch.check(52, math.inf, has_checkpoint=True)
    with pytest.raises(LossSpikeError):
        watch.check(53, 3.0, has_checkpoint=True)


def test_a_run_that_went_back_three_times_ends():
    with pytest.raises(TrainingError, match="gone back 3 times") as found:
        watch_after(50, returns=3).check(51, 9.0, has_checkpoint=True)
    assert not isinstance(found.value, LossSpikeError)

"""The learning rate as a function of the step."""

from __future__ import annotations

import pytest

from minimind.engine.schedule import SCHEDULES, CosineSchedule, SteadySchedule


def test_a_steady_rate_falls_linearly_at_the_end() -> None:
    rate = SteadySchedule(2.0, 100, warmup_steps=4, min_lr_ratio=0.1, decay_share=0.4)
    assert [rate(step) for step in range(4)] == [0.5, 1.0, 1.5, 2.0]
    assert {rate(step) for step in range(4, 61)} == {2.0}
    # Halfway through the fall, and at its end.
    assert rate(80) == pytest.approx(2.0 * (0.1 + 0.9 / 2))
    assert rate(100) == pytest.approx(0.2)
    assert rate(1000) == pytest.approx(0.2)


@pytest.mark.parametrize("kind", SCHEDULES.values(), ids=SCHEDULES.keys())
@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (1, 1), (2, 0), (7, 3), (50, 0)])
def test_rates_stay_between_the_least_and_the_peak(
    kind: type[CosineSchedule] | type[SteadySchedule], total: int, warmup: int
) -> None:
    rate = kind(1.0, total, warmup_steps=warmup)
    rates = [rate(step) for step in range(total)]
    assert max(rates) <= 1.0
    falling = rates[warmup:]
    assert falling == sorted(falling, reverse=True)
    assert min(rates[warmup:] or [0.1]) >= 0.1
    assert kind(1.0, total, warmup_steps=warmup, min_lr_ratio=1.0)(total) == 1.0

"""What is said of a step's answers: by hand, and the same of twice as many ranks with the like."""

from __future__ import annotations

import math

import pytest
from labelled_answers import engine_of
from small_rollouts import build_policy, build_prompt

from minimind.rewards.scorer import Score
from minimind.stages.rollout_measures import RolloutMeasures
from minimind.stages.trajectory import Trajectory

WORTH = ((1.0, 0.0), (0.5, 0.5), (None, 0.25))


def build_groups() -> list[list[Trajectory]]:
    """Three prompts with two answers each, of 3 and 1 own tokens beside a tool's two; the second
    is cut and has another turn."""
    groups = []
    for unit, rewards in enumerate(WORTH):
        group = []
        for index, reward in enumerate(rewards):
            one = Trajectory(build_prompt(unit), [], index)
            own = 1 if index else 3
            one.ids, one.log_probs = [7] * (own + 2), [*[-1.0] * own, None, None]
            one.turns = [{"role": "assistant", "content": ""}] * (1 + index)
            one.is_cut = index == 1
            one.score = Score(reward, {"exact": reward, "short": None})
            group.append(one)
        groups.append(group)
    return groups


@pytest.mark.parametrize("size", [1, 2])
def test_measures_by_hand(size: int, monkeypatch: pytest.MonkeyPatch):
    clock = iter((0.0, 0.5, 1.0, 2.5))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    measures = RolloutMeasures(["exact", "short"])
    measures.start()
    for _ in range(2):
        with measures.time("rollout"):
            pass
    measures.add_up(engine_of(build_policy(), size), build_groups(), num_kept=2)
    found = measures.finish()
    assert tuple(found) == measures.names
    known = [1.0, 0.0, 0.5, 0.5, 0.25]
    mean = sum(known) / 5
    assert measures.mean_reward == pytest.approx(mean)
    deviation = math.sqrt(sum((r - mean) ** 2 for r in known) / 5)
    assert found["reward_std"] == pytest.approx(deviation)
    assert found["reward_exact"] == pytest.approx(mean)
    assert math.isnan(found["reward_short"]), "none could be computed"
    assert (found["answer_tokens"], found["turns"], found["cut_share"]) == (2.0, 1.5, 0.5)
    assert found["spread_share"] == found["dropped_share"] == pytest.approx(1 / 3)
    assert found["failed_rewards"] == size
    assert (found["time_rollout_s"], found["time_reward_s"]) == (2.0, 0.0)
    assert found["rollout_tokens_per_s"] == 12 * size / 2.0

"""Measures a step's answers beyond the loss: rewards, lengths, and the time of each part of the
step."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence

import torch

from minimind.engine.deepspeed_engine import DeepSpeedEngine
from minimind.runtime.devices import send
from minimind.stages.trajectory import Trajectory

_TIMES = ("rollout", "reward", "reference", "forward", "backward")


class RolloutMeasures:
    """Sums measures of the answers over all ranks, and times the parts of a step on this rank's
    host. `time_backward_s` is an update's time minus its forwards. No timer waits for a GPU, so
    there the times of forward and backward only cover their launches."""

    def __init__(self, reward_names: Sequence[str]) -> None:
        self._rewards = tuple(reward_names)
        self.mean_reward = 0.0
        """The mean reward of the step's answers over all ranks."""
        self.start()

    @property
    def names(self) -> tuple[str, ...]:
        return (
            "reward_std",
            *(f"reward_{name}" for name in self._rewards),
            "answer_tokens",
            "cut_share",
            "turns",
            "spread_share",
            "dropped_share",
            "failed_rewards",
            "rollout_tokens_per_s",
            *(f"time_{name}_s" for name in _TIMES),
        )

    def start(self) -> None:
        """Begins a step: clears the measures of the last one."""
        self._found: dict[str, float] = {}
        self._times: dict[str, float] = dict.fromkeys(_TIMES, 0.0)

    @contextlib.contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Adds the time that the block takes to the part `name` of the step."""
        began = time.perf_counter()
        yield
        self._times[name] += time.perf_counter() - began

    def add_up(
        self, engine: DeepSpeedEngine, groups: Sequence[Sequence[Trajectory]], *, num_kept: int
    ) -> None:
        """Sums the measures of all ranks' answers. `groups` are this rank's answers by prompt;
        `num_kept` of the groups are learned from. All ranks call it."""
        answers = [one for group in groups for one in group]
        worth = [one.reward for one in answers if one.reward is not None]
        # (sum, number): each measure is a mean over the second.
        sums = {
            "reward": (sum(worth), len(worth)),
            "square": (sum(value**2 for value in worth), len(worth)),
            "answer_tokens": (sum(one.num_made for one in answers), len(answers)),
            "cut_share": (sum(one.is_cut for one in answers), len(answers)),
            "turns": (sum(_num_turns(one) for one in answers), len(answers)),
            "spread_share": (sum(map(has_spread, groups)), len(groups)),
            "dropped_share": (len(groups) - num_kept, len(groups)),
            "failed_rewards": (len(answers) - len(worth), 1),
        }
        for name in self._rewards:
            parts = [one.score.parts[name] for one in answers if one.score is not None]
            known = [part for part in parts if part is not None]
            sums[f"reward_{name}"] = (sum(known), len(known))
        table = send(list(sums.values()), engine.device, torch.float64)
        totals = engine.sum_over_ranks(table.flatten()).view(-1, 2).tolist()
        found = {
            name: total / count if count else math.nan
            for name, (total, count) in zip(sums, totals, strict=True)
        }
        self.mean_reward = found.pop("reward")
        found["reward_std"] = math.sqrt(max(found.pop("square") - self.mean_reward**2, 0.0))
        found["failed_rewards"] *= engine.ranks.world_size
        made = totals[list(sums).index("answer_tokens")][0]
        found["rollout_tokens_per_s"] = made / max(self._times["rollout"], 1e-9)
        self._found = found

    def finish(self) -> dict[str, float]:
        """Gives the step's measures and times by name."""
        times = {f"time_{name}_s": seconds for name, seconds in self._times.items()}
        times["time_backward_s"] -= times["time_forward_s"]
        return {name: {**self._found, **times}[name] for name in self.names}


def _num_turns(trajectory: Trajectory) -> int:
    return sum(turn["role"] == "assistant" for turn in trajectory.turns)


def has_spread(group: Sequence[Trajectory]) -> bool:
    """Tells whether the rewards in a group differ; a group of equal rewards teaches nothing."""
    known = [one.reward for one in group if one.reward is not None]
    return bool(known) and max(known) - min(known) > 1e-6

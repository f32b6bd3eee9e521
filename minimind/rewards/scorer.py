"""Scores rollouts by the weighted sum of rewards."""

from __future__ import annotations

import contextlib
import logging
import math
import numbers
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from minimind.config.spelling import did_you_mean
from minimind.errors import ConfigError, TrainingError
from minimind.rewards.rollout import Rollout
from minimind.rewards.shipped import SHIPPED
from minimind.runtime.function_pool import Call, Failure, FunctionPool, Outcome

logger = logging.getLogger(__name__)

ON_ERROR = ("stop", "skip")
_MOST_WARNINGS = 5
_MOST_CHARACTERS = 200

_EXAMPLE = Rollout(
    prompt="What is 6 plus 9?",
    messages=[{"role": "user", "content": "What is 6 plus 9?"}],
    completion="<think>\n6 + 9 = 15\n</think>\n\nIt is 15.",
    answer="It is 15.",
    gt="15",
    row={"conversations": [{"role": "user", "content": "What is 6 plus 9?"}], "gt": "15"},
    turns=[{"role": "assistant", "content": "<think>\n6 + 9 = 15\n</think>\n\nIt is 15."}],
    num_tokens=20,
    is_cut=False,
)
"""The rollout on which the shipped rewards are tried before a run."""


@dataclass(frozen=True, slots=True)
class Score:
    """Holds a rollout's score and the rewards that it is made of."""

    total: float | None
    """The sum of weight x reward; None where a reward could not be computed."""
    parts: dict[str, float | None]
    """Each reward by its name in `Scorer.reward_names`, not multiplied by its weight."""


class Scorer:
    """Computes rewards in worker processes and adds them up.

    If a reward raises, takes too long, ends its process or returns no finite number, an error names
    it and the prompt. Then on_error "stop" ends the run, and "skip" leaves the rollout without a
    total.
    """

    def __init__(
        self,
        rewards: Mapping[str, float],
        *,
        num_workers: int = 2,
        timeout_s: float = 5.0,
        on_error: Literal["stop", "skip"] = "stop",
    ) -> None:
        """Takes the weight of each reward, a function named as in SHIPPED,
        `package.module:function` or `path/to/file.py:function`, with keyword arguments if any.
        `timeout_s` limits each call; a function's first call in a worker may take longer (see
        FunctionPool). Raises ConfigError."""
        if not rewards:
            raise ConfigError(f"no reward is given; the shipped ones are {', '.join(SHIPPED)}")
        for reward, weight in rewards.items():
            if not _is_finite(weight):
                raise ConfigError(f"the weight of {reward} is {weight!r}: it must be a number")
        if on_error not in ON_ERROR:
            guess = did_you_mean(str(on_error), ON_ERROR)
            raise ConfigError(f"on_reward_error={on_error!r}{guess}: it must be stop or skip")
        self._weights = dict(rewards)
        self._timeout_s, self._stops = timeout_s, on_error == "stop"
        self._pool = FunctionPool(
            list(rewards), num_workers=num_workers, timeout_s=timeout_s, shipped=SHIPPED
        )
        self._names = dict(zip(rewards, _unique_names(self._pool, rewards), strict=True))
        self._num_failures = 0

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def reward_names(self) -> list[str]:
        """Gives a short unique name for each reward, for columns: the function's name; a second
        reward of the same name gets the suffix _2."""
        return list(self._names.values())

    def check(self) -> None:
        """Imports all rewards in a worker and tries the shipped ones on an example. Raises
        ConfigError, which names the first reward that cannot be used as written."""
        self._pool.check()
        shipped = [one for one in self._weights if one.partition("(")[0].strip() in SHIPPED]
        outcomes = self._pool.call([Call(reward, _EXAMPLE) for reward in shipped])
        for reward, outcome in zip(shipped, outcomes, strict=True):
            if failure := _find_failure(outcome):
                raise ConfigError(f"the reward {reward} cannot be used: {failure.text}")

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Gives the score of each rollout, in their order. Raises TrainingError where a reward
        cannot be computed and on_error is "stop"."""
        # The calls for one rollout are adjacent, so that the pool pickles it once.
        calls = [Call(reward, rollout) for rollout in rollouts for reward in self._weights]
        parts: list[float | None] = [None] * len(calls)
        failures = 0
        with contextlib.closing(self._pool.stream(calls)) as stream:
            for number, outcome in stream:
                failure = _find_failure(outcome)
                if failure is None:
                    parts[number] = float(outcome.value)
                    continue
                call = calls[number]
                if self._stops:
                    raise TrainingError(self._describe(call, failure, with_advice=True))
                failures += 1
                if self._num_failures + failures <= _MOST_WARNINGS:
                    text = self._describe(call, failure, with_advice=False)
                    logger.warning("%s; the sample is skipped", text)
        self._count(failures)
        found = iter(parts)
        return [self._add_up([next(found) for _ in self._weights]) for _ in rollouts]

    def close(self) -> None:
        """Ends the worker processes."""
        self._pool.close()

    def _add_up(self, parts: list[float | None]) -> Score:
        weights = self._weights.values()
        known = [w * part for w, part in zip(weights, parts, strict=True) if part is not None]
        total = math.fsum(known) if len(known) == len(parts) else None
        return Score(total, dict(zip(self._names.values(), parts, strict=True)))

    def _count(self, failures: int) -> None:
        self._num_failures += failures
        if failures and self._num_failures > _MOST_WARNINGS:
            logger.warning(
                "rewards that could not be computed: %d now, %d in this run",
                failures,
                self._num_failures,
            )

    def _describe(self, call: Call, failure: Failure, *, with_advice: bool) -> str:
        prompt = " ".join(call.argument.prompt.split())
        if len(prompt) > _MOST_CHARACTERS:
            prompt = prompt[:_MOST_CHARACTERS] + "…"
        text = f'the reward {call.function} of the prompt "{prompt}": {failure.text}'
        if not with_advice:
            return text
        advice = "Mend the function"
        if failure.kind == "slow":
            advice += f", raise reward_timeout_s above {self._timeout_s:g}"
        return f"{text}. {advice}, or leave such samples out with --set on_reward_error=skip"


def _find_failure(outcome: Outcome) -> Failure | None:
    """Gives the reason why a call has no usable result, or None; a value that is not a finite
    number is no result either."""
    if outcome.failure is not None:
        return outcome.failure
    value = outcome.value
    if _is_finite(value):
        return None
    shown = repr(value) if value is None or isinstance(value, numbers.Real) else ""
    what = shown[:40] or f"a value of type {type(value).__name__}"
    return Failure("raised", f"it returned {what} where a finite number is expected")


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, numbers.Real) and math.isfinite(value)
    except OverflowError:
        return False


def _unique_names(pool: FunctionPool, rewards: Mapping[str, float]) -> Iterator[str]:
    taken = {"std"}  # reward_std is a column of its own
    for reward in rewards:
        name = first = pool.short_name(reward)
        number = 2
        while name in taken:
            name, number = f"{first}_{number}", number + 1
        taken.add(name)
        yield name

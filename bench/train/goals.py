"""Judges whether each stage reaches its goals beside the rows it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench import harness
from bench.harness import Row, shown, with_error

Rows = Mapping[str, Row]
"""The rows by name; of several engine rows the first."""
Measure = Callable[[Rows], Mapping[str, float]]
"""Gives a `median` and, for a ratio of values taken in turns, its `standard_error`."""


@dataclass(frozen=True, slots=True)
class Goal:
    """Defines a figure that is made of a stage's rows. A figure without a limit is reported and not
    judged."""

    name: str
    needs: tuple[str, ...]
    """The names of the rows that the figure is made of."""
    measure: Measure
    at_least: float | None = None
    at_most: float | None = None
    on_gpu: float | None = None
    """The limit on a GPU, where it differs."""
    bound: Callable[[Rows], float] | None = None
    """The best ratio that the matrix products alone allow."""
    reads: str = "step_seconds"
    """The field that the figure reads; a goal is left out where a row lacks this field."""

    def limits(self, on_gpu: bool) -> dict[str, float | None]:
        found = {"at_least": self.at_least, "at_most": self.at_most}
        if not (on_gpu and self.on_gpu):
            return found
        return {name: limit and self.on_gpu for name, limit in found.items()}


def measure_goals(stage: str, rows: Sequence[Row], on_gpu: bool) -> list[dict[str, Any]]:
    """Gives a result for each goal of `stage`. `rows` are of one model; a goal whose rows are not
    among them is left out."""
    by_name: dict[str, Row] = {}
    for row in rows:
        by_name.setdefault(row["name"], row)
    results = []
    for goal in (_ENGINE_TAX, *_GOALS.get(stage, ())):
        needed = [by_name.get(name, {}).get(goal.reads) for name in goal.needs]
        if any(value is None for value in needed):
            continue
        found, limits = goal.measure(by_name), goal.limits(on_gpu)
        results.append(
            {
                "stage": stage,
                "model": by_name[goal.needs[0]]["model"],
                "name": goal.name,
                "value": found["median"],
                "standard_error": found.get("standard_error"),
                **limits,
                "bound": goal.bound(by_name) if goal.bound else None,
                "is_met": _is_met(found["median"], **limits),
            }
        )
    return results


def _is_met(value: float, *, at_least: float | None, at_most: float | None) -> bool | None:
    if at_least is None and at_most is None:
        return None
    return (at_least is None or value >= at_least) and (at_most is None or value <= at_most)


def format_goals(goals: Sequence[Row]) -> str:
    columns: harness.Columns = {
        "goal": title,
        "measured": lambda goal: with_error(goal["value"], goal["standard_error"], digits=3),
        "wanted": wanted,
        "products alone allow": lambda goal: shown(goal["bound"], ".2f", missing="–"),
        "met": lambda goal: {None: "–", True: "yes", False: "no"}[goal["is_met"]],
    }
    return harness.format_rows(goals, columns)


def title(goal: Row) -> str:
    """Names a goal with its stage and model."""
    return f"{goal['stage']} of {goal['model']}: {goal['name']}"


def wanted(goal: Row) -> str:
    """Gives the limit of a goal with its sign."""
    signs = {"at_least": "≥", "at_most": "≤"}
    limits = [f"{signs[name]} {goal[name]}" for name in signs if goal[name] is not None]
    return "".join(limits) or "–"


def state_bytes(row: Row) -> int:
    """Gives the bytes that a row holds besides activations: those that outlive a step, and the
    gradients."""
    return row["live_bytes_between_steps"] + 4 * row["trained_parameters"]


def _speed_beside(name: str) -> Measure:
    return lambda rows: {
        "median": rows["engine"][f"ratio_to_{name}"],
        "standard_error": rows["engine"][f"ratio_to_{name}_error"],
    }


def _seconds(names: tuple[str, ...], others: tuple[str, ...]) -> Measure:
    """Makes the ratio of two times: the summed step times of the rows `names` over those of the
    rows `others`."""

    def measure(rows: Rows) -> Mapping[str, float]:
        def sums(names: tuple[str, ...]) -> list[float]:
            steps = zip(*(rows[name]["step_seconds"] for name in names), strict=True)
            return [sum(step) for step in steps]

        return harness.paired_ratio(sums(names), sums(others))

    return measure


def _flops_over(name: str) -> Callable[[Rows], float]:
    return lambda rows: (
        rows[name]["flops_per_token_causal"] / rows["engine"]["flops_per_token_causal"]
    )


_ENGINE_TAX = Goal(
    "step time over the plain loop's",
    ("engine", "plain_loop"),
    _seconds(("engine",), ("plain_loop",)),
    at_most=1.05,
)
_ROLLOUTS = Goal(
    "rollout tokens/s beside the batch engine's",
    ("engine",),
    lambda rows: rows["engine"]["rollout_over_engine"],
    at_least=0.85,
    reads="rollout_over_engine",
)
_GOALS: dict[str, tuple[Goal, ...]] = {
    "pretrain": (
        Goal(
            "step time of experts over a dense model's", ("plain_loop", "dense"),
            _seconds(("plain_loop",), ("dense",)), at_most=1.1,
        ),
    ),
    "sft": (
        Goal(
            "tokens/s beside pretrain", ("engine", "pretrain"), _speed_beside("pretrain"),
            at_least=0.95,
        ),
    ),
    "lora": (
        Goal(
            "tokens/s beside sft", ("engine", "sft"), _speed_beside("sft"),
            at_least=1.15, on_gpu=1.2, bound=_flops_over("sft"),
        ),
        Goal(
            "memory beyond activations beside sft", ("engine", "sft"),
            lambda rows: {"median": state_bytes(rows["engine"]) / state_bytes(rows["sft"])},
            at_most=0.5, reads="live_bytes_between_steps",
        ),
    ),
    "dpo": (
        Goal(
            "steps/s beside two models", ("engine", "two_models"), _speed_beside("two_models"),
            at_least=1.2, bound=lambda rows: 4 / 3,
        ),
        # The pass that fills the cache is one forward of every row.
        Goal(
            "the same, with one epoch's caching pass", ("engine", "two_models", "frozen"),
            _seconds(("two_models",), ("engine", "frozen")),
        ),
    ),
    "distill": (
        Goal(
            "step time over teacher forward + sft step", ("engine", "sft", "frozen"),
            _seconds(("engine",), ("sft", "frozen")), at_most=1.1,
        ),
    ),
    "grpo": (
        Goal(
            "samples/s beside the original's", ("engine", "original"),
            _seconds(("original",), ("engine",)), at_least=5,
        ),
        _ROLLOUTS,
    ),
    "ppo": (_ROLLOUTS,),
}  # fmt: skip

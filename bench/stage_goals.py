"""What each stage is to reach beside what it is compared with, and whether it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench import harness

Rows = Mapping[str, Mapping[str, Any]]
"""By name; of several engine rows the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A figure made of a stage's rows. Without a limit it is reported and not judged."""

    name: str
    needs: tuple[str, ...]
    """The rows it is made of, besides the engine's."""
    measure: Callable[[Rows], Mapping[str, float]]
    """`median` and, of a ratio in turns, `standard_error`."""
    at_least: float | None = None
    at_least_on_gpu: float | None = None
    at_most: float | None = None
    bound: Callable[[Rows], float] | None = None
    """What the matrix products alone allow."""
    reads: str = "step_seconds"
    """Left out where a row has none of it."""


def measure_goals(stage: str, rows: Sequence[Mapping[str, Any]], on_gpu: bool) -> list[dict]:
    """One result for each goal of `stage` whose rows of one model were measured."""
    by_name: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        by_name.setdefault(row["name"], row)
    results = []
    for goal in (_ENGINE_TAX, *_GOALS.get(stage, ())):
        names = {"engine", *goal.needs}
        if not names <= by_name.keys() or any(by_name[n].get(goal.reads) is None for n in names):
            continue
        found = goal.measure(by_name)
        at_least = goal.at_least_on_gpu if on_gpu and goal.at_least_on_gpu else goal.at_least
        value = found["median"]
        limits = {"at_least": at_least, "at_most": goal.at_most}
        results.append(
            {
                "stage": stage,
                "model": by_name["engine"]["model"],
                "name": goal.name,
                "value": value,
                "standard_error": found.get("standard_error"),
                **limits,
                "bound": goal.bound(by_name) if goal.bound else None,
                "is_met": _is_met(value, **limits),
            }
        )
    return results


def format_goals(goals: Sequence[Mapping[str, Any]]) -> str:
    header = ("goal", "measured", "wanted", "products alone allow", "met")
    return harness.format_table(header, [_cells(goal) for goal in goals])


def _cells(goal: Mapping[str, Any]) -> list[str]:
    error, met = goal["standard_error"], goal["is_met"]
    signs = {"at_least": "≥", "at_most": "≤"}
    wanted = [f"{signs[name]} {goal[name]}" for name in signs if goal[name] is not None]
    return [
        f"{goal['stage']} of {goal['model']}: {goal['name']}",
        f"{goal['value']:.3f}" + ("" if error is None else f" ± {error:.3f}"),
        "".join(wanted) or "–",
        "–" if goal["bound"] is None else f"{goal['bound']:.2f}",
        "–" if met is None else "yes" if met else "no",
    ]


def _is_met(value: float, *, at_least: float | None, at_most: float | None) -> bool | None:
    if at_least is None and at_most is None:
        return None
    return (at_least is None or value >= at_least) and (at_most is None or value <= at_most)


def _tokens_beside(name: str) -> Callable[[Rows], Mapping[str, float]]:
    def measure(rows: Rows) -> Mapping[str, float]:
        engine = rows["engine"]
        return {
            "median": engine[f"ratio_to_{name}"],
            "standard_error": engine[f"ratio_to_{name}_error"],
        }

    return measure


def state_bytes(row: Mapping[str, Any]) -> int:
    """What a row holds beyond activations: all that lives between its steps, and the gradients."""
    return row["live_bytes_between_steps"] + 4 * row["trained_parameters"]


def _engine_tax(rows: Rows) -> Mapping[str, float]:
    seconds = (rows[name]["step_seconds"] for name in ("engine", "plain_loop"))
    return harness.paired_ratio(*seconds)


def _seconds_over(*names: str) -> Callable[[Rows], Mapping[str, float]]:
    """An engine step's time over the sum of others'."""

    def measure(rows: Rows) -> Mapping[str, float]:
        others = zip(*(rows[name]["step_seconds"] for name in names), strict=True)
        return harness.paired_ratio(rows["engine"]["step_seconds"], [sum(o) for o in others])

    return measure


def _two_models_over_a_cached_epoch(rows: Rows) -> Mapping[str, float]:
    """The pass that fills the cache is one forward of every row."""
    parts = (rows[name]["step_seconds"] for name in ("engine", "frozen"))
    cached = [sum(step) for step in zip(*parts, strict=True)]
    return harness.paired_ratio(rows["two_models"]["step_seconds"], cached)


def _flops_over(name: str) -> Callable[[Rows], float]:
    return lambda rows: (
        rows[name]["flops_per_token_causal"] / rows["engine"]["flops_per_token_causal"]
    )


_ENGINE_TAX = Goal(
    name="step time over the plain loop's", needs=("plain_loop",), measure=_engine_tax, at_most=1.05
)
_ROLLOUTS = Goal(
    name="rollout tokens/s beside the batch engine's",
    needs=(),
    measure=lambda rows: rows["engine"]["rollout_over_engine"],
    at_least=0.85,
    reads="rollout_over_engine",
)
_GOALS: dict[str, tuple[Goal, ...]] = {
    "sft": (
        Goal(
            name="tokens/s beside pretrain", needs=("pretrain",),
            measure=_tokens_beside("pretrain"), at_least=0.95,
        ),
    ),
    "lora": (
        Goal(
            name="tokens/s beside sft", needs=("sft",), measure=_tokens_beside("sft"),
            at_least=1.15, at_least_on_gpu=1.2, bound=_flops_over("sft"),
        ),
        Goal(
            name="memory beyond activations beside sft", needs=("sft",), at_most=0.5,
            reads="live_bytes_between_steps",
            measure=lambda rows: {
                "median": state_bytes(rows["engine"]) / state_bytes(rows["sft"])
            },
        ),
    ),
    "dpo": (
        Goal(
            name="steps/s beside two models", needs=("two_models",), at_least=1.2,
            measure=_tokens_beside("two_models"), bound=lambda rows: 4 / 3,
        ),
        Goal(
            name="the same, with one epoch's caching pass", needs=("two_models", "frozen"),
            measure=_two_models_over_a_cached_epoch,
        ),
    ),
    "distill": (
        Goal(
            name="step time over teacher forward + sft step", needs=("sft", "frozen"),
            measure=_seconds_over("sft", "frozen"), at_most=1.1,
        ),
    ),
    "grpo": (
        Goal(
            name="samples/s beside the original's", needs=("original",), at_least=5,
            measure=lambda rows: harness.paired_ratio(
                rows["original"]["step_seconds"], rows["engine"]["step_seconds"]
            ),
        ),
        _ROLLOUTS,
    ),
    "ppo": (_ROLLOUTS,),
}  # fmt: skip

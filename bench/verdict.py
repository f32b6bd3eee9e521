"""From pairs of runs to a verdict on each row: the rule of bench.compare."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bench import harness

TOLERANCE = 0.05
"""A rate may be lower by this, or by three standard errors where those are more."""
MEMORY_TOLERANCE = 0.01
COUNTS = ("dispatched_operators", "kernel_calls", "cuda_launches", "parameter_tensors", "launches",
          "waiting_operators")  # fmt: skip
"""Compared exactly: one more is worse."""

Verdict = Literal["worse", "too noisy", "better", "same"]


@dataclass(frozen=True, slots=True)
class Run:
    """One commit measured once."""

    probe: float
    """What the machine could do meanwhile."""
    rows: Mapping[str, Mapping[str, Any]]

    def rate(self, key: str) -> float | None:
        """Work for each unit of what the machine could do; None where a row has no time."""
        row = self.rows[key]
        if row.get("useful_tokens_per_s"):
            return row["useful_tokens_per_s"] / self.probe
        return 1 / (row["median_us"] * self.probe) if row.get("median_us") else None


@dataclass(frozen=True, slots=True)
class Pair:
    base: Run
    head: Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One row at both commits."""

    key: str
    pairs: int
    ratio: float | None
    """Speed of head over base, the median over pairs; None for a row without times or a new one."""
    standard_error: float | None
    memory_ratio: float | None
    counts: Mapping[str, tuple[int, int]]
    """Those that differ: (base, head)."""
    verdict: Verdict
    why: str

    @classmethod
    def build(cls, key: str, pairs: Sequence[Pair]) -> Comparison:
        head = pairs[-1].head.rows[key]
        base = pairs[-1].base.rows.get(key)
        if base is None:
            return cls(
                key=key, pairs=len(pairs), ratio=None, standard_error=None, memory_ratio=None,
                counts={}, verdict="same", why="new",
            )  # fmt: skip
        ratio, error = _ratio(key, pairs)
        memory = None
        if base.get("peak_bytes") and head.get("peak_bytes"):
            memory = head["peak_bytes"] / base["peak_bytes"]
        ours, theirs = _counts(head), _counts(base)
        counts = {
            name: (theirs[name], ours[name])
            for name in theirs.keys() & ours.keys()
            if theirs[name] != ours[name]
        }
        verdict, why = _judge(ratio, error, memory, counts)
        return cls(
            key=key, pairs=len(pairs), ratio=ratio, standard_error=error, memory_ratio=memory,
            counts=counts, verdict=verdict, why=why,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.key, **asdict(self)}


def _counts(row: Mapping[str, Any]) -> dict[str, int]:
    counts = {name: int(row[name]) for name in COUNTS if row.get(name) is not None}
    if row.get("sync_operators"):
        counts["sync_operators"] = sum(row["sync_operators"].values())
    return counts


def row_key(part: str, row: Mapping[str, Any]) -> str:
    """What names a row in every run."""
    names = ("name", "model", "preset", "ds_config", "dtype", "contender", "batch")
    return " ".join([part, *(str(row[n]) for n in names if row.get(n) is not None)])


def needs_more_pairs(pairs: Sequence[Pair]) -> bool:
    """Whether some row's ratio is not known to within the tolerance yet."""
    for key in pairs[0].head.rows:
        if key in pairs[0].base.rows:
            ratio, error = _ratio(key, pairs)
            if ratio is not None and error is not None and 3 * error > TOLERANCE:
                return True
    return False


def _ratio(key: str, pairs: Sequence[Pair]) -> tuple[float | None, float | None]:
    rates = [(pair.head.rate(key), pair.base.rate(key)) for pair in pairs]
    known = [(head, base) for head, base in rates if head and base]
    if not known:
        return None, None
    found = harness.paired_ratio(*(list(side) for side in zip(*known, strict=True)))
    # One pair has no spread: nothing is known of its error.
    return found["median"], found["standard_error"] if len(known) > 1 else math.inf


def _judge(
    ratio: float | None,
    error: float | None,
    memory: float | None,
    counts: Mapping[str, tuple[int, int]],
) -> tuple[Verdict, str]:
    worse, noisy, better = [], False, []
    if ratio is not None and error is not None:
        allowed = max(TOLERANCE, 3 * error)
        if ratio < 1 - allowed:
            worse.append("slower")
        elif 3 * error > TOLERANCE:
            noisy = True
        elif ratio > 1 + allowed:
            better.append("faster")
    if memory is not None and memory > 1 + MEMORY_TOLERANCE:
        worse.append("more memory")
    if memory is not None and memory < 1 - MEMORY_TOLERANCE:
        better.append("less memory")
    for name, (base, head) in counts.items():
        (worse if head > base else better).append(f"{name} {base:,} -> {head:,}")
    if worse:
        return "worse", ", ".join(worse)
    if noisy:
        return "too noisy", ""
    return ("better", ", ".join(better)) if better else ("same", "")


def render_table(comparisons: Sequence[Comparison]) -> str:
    """Markdown, fit for a pull request."""
    header = ("row", "pairs", "speed", "memory", "verdict", "why")
    rows = [
        (
            c.key,
            str(c.pairs),
            "–" if c.ratio is None else f"{c.ratio:.3f} ± {c.standard_error:.3f}",
            "–" if c.memory_ratio is None else f"{c.memory_ratio:.3f}",
            c.verdict,
            c.why or "–",
        )
        for c in comparisons
    ]
    return harness.format_table(header, rows)

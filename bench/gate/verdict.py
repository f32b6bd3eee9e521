"""Judges each row by its pairs of runs, as bench.gate does."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bench import harness
from bench.harness import NOT_MEASURED, Columns, Row, shown, with_error

TOLERANCE = 0.05
"""The tolerance for a lower rate; three standard errors where those are more."""
MEMORY_TOLERANCE = 0.01
COUNTS = ("dispatched_operators", "device_operators", "kernel_launches", "cuda_launches",
          "launches", "parameter_tensors", "waiting_operators")  # fmt: skip
"""The fields that are compared exactly: one more is worse."""

Verdict = Literal["worse", "too noisy", "better", "same", "not compared"]
GRAVEST: tuple[Verdict, ...] = ("worse", "too noisy", "not compared", "better", "same")


@dataclass(frozen=True, slots=True)
class Run:
    """Holds the rows that one run measured at one commit."""

    probe: float
    """The machine's speed during the run."""
    rows: Mapping[str, Row]

    def rate(self, key: str) -> float | None:
        """Gives the speed of a row over the machine's speed; None where the row has no time."""
        row = self.rows[key]
        if row.get("useful_tokens_per_s"):
            return row["useful_tokens_per_s"] / self.probe
        return 1 / (row["median_us"] * self.probe) if row.get("median_us") else None


@dataclass(frozen=True, slots=True)
class Pair:
    base: Run
    head: Run


@dataclass(frozen=True, slots=True)
class Comparison:
    """Compares a row of the base with the same row of the head."""

    key: str
    pairs: int
    ratio: float | None
    """The speed of head over base, the median over pairs; None for a new row or one without times.
    """
    standard_error: float | None
    ratios: Sequence[float]
    """The ratio of each pair."""
    memory_ratio: float | None
    counts: Mapping[str, tuple[int, int]]
    """The counts that differ, as (base, head)."""
    verdict: Verdict
    why: str

    @classmethod
    def build(cls, key: str, pairs: Sequence[Pair]) -> Comparison:
        both = _with_row(pairs, key)
        if not both:
            why = "new" if any(key in pair.head.rows for pair in pairs) else "gone"
            return cls(key, 0, None, None, (), None, {}, "not compared", why)
        ratio, error, ratios = _ratio(key, both)
        growths = (_growth(pair.head.rows[key], pair.base.rows[key]) for pair in both)
        known = [growth for growth in growths if growth]
        memory = statistics.median(known) if known else None
        theirs, ours = (
            _least_counts([getattr(pair, side).rows[key] for pair in both])
            for side in ("base", "head")
        )
        counts = {
            name: (theirs[name], ours[name])
            for name in sorted(theirs.keys() & ours.keys())
            if theirs[name] != ours[name]
        }
        said, kept = (
            _measures(key, [getattr(pair, side) for pair in both]) for side in ("base", "head")
        )
        verdict, why = _judge(ratio, error, memory, counts, sorted(said - kept))
        return cls(key, len(both), ratio, error, ratios, memory, counts, verdict, why)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.key, **asdict(self)}


def _with_row(pairs: Sequence[Pair], key: str) -> list[Pair]:
    return [pair for pair in pairs if key in pair.base.rows and key in pair.head.rows]


def _ratio(key: str, pairs: Sequence[Pair]) -> tuple[float | None, float | None, Sequence[float]]:
    """Gives the speed of head over base, its standard error, and the ratio of each pair."""
    rates = [(pair.head.rate(key), pair.base.rate(key)) for pair in _with_row(pairs, key)]
    ratios = [head / base for head, base in rates if head and base]
    if not ratios:
        return None, None, ()
    found = harness.paired_ratio(ratios, [1.0] * len(ratios))
    # One pair has no spread, so the error is unknown.
    error = found["standard_error"] if len(ratios) > 1 else math.inf
    return found["median"], error, ratios


def _least_counts(rows: Sequence[Row]) -> dict[str, int]:
    """Gives the least of each count over all runs: a count that is higher in some runs only is not
    due to the code."""
    counts: dict[str, int] = {}
    for row in rows:
        found = {name: int(row[name]) for name in COUNTS if row.get(name) is not None}
        if row.get("sync_operators") is not None:
            found["sync_operators"] = sum(row["sync_operators"].values())
        for name, value in found.items():
            counts[name] = min(value, counts.get(name, value))
    return counts


def _measures(key: str, runs: Sequence[Run]) -> set[str]:
    """Names what the runs measured of a row: speed, memory, and each count."""
    rows = [run.rows[key] for run in runs]
    found = {"speed"} if any(run.rate(key) for run in runs) else set()
    found |= {"memory"} if any(any(_peaks(row)) for row in rows) else set()
    return found | _least_counts(rows).keys()


def _growth(head: Row, base: Row) -> float | None:
    """Gives the peak of head over base, of the rank that grew most: another rank may still hold
    more."""
    ours, theirs = _peaks(head), _peaks(base)
    if len(ours) != len(theirs):
        ours, theirs = [head.get("peak_bytes")], [base.get("peak_bytes")]
    return max((a / b for a, b in zip(ours, theirs, strict=True) if a and b), default=None)


def _peaks(row: Row) -> list[int | None]:
    """Gives the peak of each rank if these were measured, else the single measured or rehearsed
    peak."""
    if per_rank := row.get("peak_bytes_per_rank"):
        return list(per_rank)
    return [row.get("peak_bytes") or row.get("rehearsed_peak_bytes")]


def row_key(part: str, row: Row) -> str:
    """Gives the name by which a row is found in every run."""
    names = ("name", "model", "preset", "ds_config", "dtype", "contender", "batch")
    key = " ".join([part, *(str(row[n]) for n in names if row.get(n) is not None)])
    return f"{key} on {row['world_size']}" if part == "scaling" else key


def is_ours(row: Row) -> bool:
    """Tells whether a row measures this project's code: no rival, and no prediction."""
    return row.get("contender", "minimind") == "minimind" and not row.get("predicted")


def needs_more_pairs(pairs: Sequence[Pair], part: str) -> bool:
    """Tells whether some row of `part` has a ratio whose error is still above the tolerance."""
    keys = pairs[0].head.rows.keys() & pairs[0].base.rows.keys()
    errors = [_ratio(key, pairs)[1] for key in keys if key.split()[0] == part]
    return any(error is not None and 3 * error > TOLERANCE for error in errors)


def _judge(
    ratio: float | None,
    error: float | None,
    memory: float | None,
    counts: Mapping[str, tuple[int, int]],
    lost: Sequence[str],
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
    if lost:
        return "not compared", f"no {', '.join(lost)} any more"
    return ("better", ", ".join(better)) if better else ("same", "")


def overall(comparisons: Sequence[Comparison]) -> Verdict:
    """Gives the gravest verdict."""
    found = {c.verdict for c in comparisons}
    for verdict in GRAVEST:
        if verdict in found:
            return verdict
    return "same"


def render_report(
    comparisons: Sequence[Comparison], base: str, head: str, machine: Mapping[str, Any]
) -> str:
    """Writes Markdown, fit for a pull request: the verdict, the table, how it was measured."""
    columns: Columns = {
        "row": lambda c: c["name"],
        "pairs": lambda c: str(c["pairs"]),
        "speed": lambda c: with_error(c["ratio"], c["standard_error"], digits=3),
        "memory": lambda c: shown(c["memory_ratio"], ".3f"),
        "verdict": lambda c: "**worse**" if c["verdict"] == "worse" else c["verdict"],
        "why": lambda c: c["why"] or "–",
    }
    by_weight = sorted(comparisons, key=lambda c: (GRAVEST.index(c.verdict), c.key))
    return f"""### Benchmarks: {overall(comparisons)}

`{head}` against `{base}` on {machine["device"]}, {machine["cores"]} cores. Speed is head over \
base ± its standard error, memory head over base.

{harness.format_rows([c.to_dict() for c in by_weight], columns)}

{_describe_noise(comparisons, same_code=base == head)}

Worse: slower by more than {TOLERANCE:.0%} and three standard errors, more memory by \
{MEMORY_TOLERANCE:.0%}, or one more of what is counted. Too noisy: three standard errors are more \
than {TOLERANCE:.0%}, and nothing else is worse."""


def _describe_noise(comparisons: Sequence[Comparison], *, same_code: bool) -> str:
    """Describes how much the ratio of a pair varies, and how much is left after all pairs."""
    timed = {c.key: statistics.stdev(c.ratios) for c in comparisons if len(c.ratios) > 1}
    if not timed:
        return f"Noise of the machine: {NOT_MEASURED}, which takes times and two pairs."
    noisiest = max(comparisons, key=lambda c: timed.get(c.key, 0.0))
    left = 3 * (noisiest.standard_error or 0.0)
    said = (
        f"Noise of the machine: the ratio of a pair varies by {timed[noisiest.key]:.1%} (a "
        f"standard deviation, in `{noisiest.key}`), which {noisiest.pairs} pairs bring down to "
        f"{left:.1%} (three standard errors)."
    )
    return said + " Both are the same code: what is worse is a false alarm." * same_code

"""From pairs of runs to a verdict on each row: the rule of bench.compare."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bench import harness

TOLERANCE = 0.05
"""A rate may be lower by this, or by three standard errors where those are more."""
MEMORY_TOLERANCE = 0.01
COUNTS = ("dispatched_operators", "device_operators", "kernel_calls", "kernel_launches",
          "cuda_launches", "launches", "parameter_tensors", "waiting_operators")  # fmt: skip
"""Compared exactly: one more is worse."""

Verdict = Literal["worse", "too noisy", "better", "same", "not compared"]
_NOT_MEASURED = "not measured"
GRAVEST: tuple[Verdict, ...] = ("worse", "too noisy", "not compared", "better", "same")


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
    ratios: Sequence[float]
    """Of each pair."""
    memory_ratio: float | None
    counts: Mapping[str, tuple[int, int]]
    """Those that differ: (base, head)."""
    verdict: Verdict
    why: str

    @classmethod
    def build(cls, key: str, pairs: Sequence[Pair]) -> Comparison:
        both = [p for p in pairs if key in p.base.rows and key in p.head.rows]
        if not both:
            why = "new" if any(key in pair.head.rows for pair in pairs) else "gone"
            return cls(
                key=key, pairs=0, ratio=None, standard_error=None, ratios=(), memory_ratio=None,
                counts={}, verdict="not compared", why=why,
            )  # fmt: skip
        ratio, error = _ratio(key, both)
        memory = _memory_ratio(key, both)
        theirs = _least_counts([pair.base.rows[key] for pair in both])
        ours = _least_counts([pair.head.rows[key] for pair in both])
        counts = {
            name: (theirs[name], ours[name])
            for name in sorted(theirs.keys() & ours.keys())
            if theirs[name] != ours[name]
        }
        said, kept = (
            _measures(key, [getattr(pair, side) for pair in both]) for side in ("base", "head")
        )
        verdict, why = _judge(ratio, error, memory, counts, sorted(said - kept))
        return cls(
            key=key, pairs=len(both), ratio=ratio, standard_error=error, ratios=_ratios(key, both),
            memory_ratio=memory, counts=counts, verdict=verdict, why=why,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.key, **asdict(self)}


def _least_counts(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Of every run the least: what now and then comes on top is not the code's."""
    counts: dict[str, int] = {}
    for row in rows:
        found = {name: int(row[name]) for name in COUNTS if row.get(name) is not None}
        if row.get("sync_operators") is not None:
            found["sync_operators"] = sum(row["sync_operators"].values())
        for name, value in found.items():
            counts[name] = min(value, counts.get(name, value))
    return counts


def _measures(key: str, runs: Sequence[Run]) -> set[str]:
    """What the runs say of a row at all."""
    rows = [run.rows[key] for run in runs]
    found = {"speed"} if any(run.rate(key) for run in runs) else set()
    found |= {"memory"} if any(any(_peaks(row)) for row in rows) else set()
    return found | _least_counts(rows).keys()


def _memory_ratio(key: str, pairs: Sequence[Pair]) -> float | None:
    growths = (_growth(pair.head.rows[key], pair.base.rows[key]) for pair in pairs)
    ratios = [growth for growth in growths if growth]
    return statistics.median(ratios) if ratios else None


def _growth(head: Mapping[str, Any], base: Mapping[str, Any]) -> float | None:
    """Gives head's peak over base's on the rank where it grew most: another may still hold more."""
    ours, theirs = _peaks(head), _peaks(base)
    if len(ours) != len(theirs):
        ours, theirs = [head.get("peak_bytes")], [base.get("peak_bytes")]
    ratios = [a / b for a, b in zip(ours, theirs, strict=True) if a and b]
    return max(ratios, default=None)


def _peaks(row: Mapping[str, Any]) -> list[int | None]:
    """Gives the peak of each rank, else the peak of the run, else (nothing was measured) the
    rehearsed peak."""
    if per_rank := row.get("peak_bytes_per_rank"):
        return list(per_rank)
    return [row.get("peak_bytes") or row.get("rehearsed_peak_bytes")]


def row_key(part: str, row: Mapping[str, Any]) -> str:
    """Gives the name of a row, the same in every run."""
    names = ("name", "model", "preset", "ds_config", "dtype", "contender", "batch")
    key = " ".join([part, *(str(row[n]) for n in names if row.get(n) is not None)])
    return f"{key} on {row['world_size']}" if part == "scaling" else key


def is_ours(row: Mapping[str, Any]) -> bool:
    """Tells whether a row measures this project's code: nothing beside it, no prediction."""
    return row.get("contender", "minimind") == "minimind" and not row.get("predicted")


def needs_more_pairs(pairs: Sequence[Pair], part: str) -> bool:
    """Tells whether the ratio of some row of `part` is not known to within the tolerance yet."""
    for key in pairs[0].head.rows.keys() & pairs[0].base.rows.keys():
        if key.split()[0] != part:
            continue
        ratio, error = _ratio(key, pairs)
        if ratio is not None and error is not None and 3 * error > TOLERANCE:
            return True
    return False


def _ratio(key: str, pairs: Sequence[Pair]) -> tuple[float | None, float | None]:
    both = [pair for pair in pairs if key in pair.head.rows and key in pair.base.rows]
    if not (ratios := _ratios(key, both)):
        return None, None
    found = harness.paired_ratio(ratios, [1.0] * len(ratios))
    # One pair has no spread: nothing is known of its error.
    return found["median"], found["standard_error"] if len(ratios) > 1 else math.inf


def _ratios(key: str, pairs: Sequence[Pair]) -> list[float]:
    rates = [(pair.head.rate(key), pair.base.rate(key)) for pair in pairs]
    return [head / base for head, base in rates if head and base]


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
    """The gravest of all."""
    found = {c.verdict for c in comparisons}
    for verdict in GRAVEST:
        if verdict in found:
            return verdict
    return "same"


def render_report(
    comparisons: Sequence[Comparison], base: str, head: str, machine: Mapping[str, Any]
) -> str:
    """Markdown, fit for a pull request: the verdict, the table, how it was measured."""
    header = ("row", "pairs", "speed", "memory", "verdict", "why")
    rows = [
        (
            c.key,
            str(c.pairs),
            _NOT_MEASURED if c.ratio is None else f"{c.ratio:.3f} ± {c.standard_error:.3f}",
            _NOT_MEASURED if c.memory_ratio is None else f"{c.memory_ratio:.3f}",
            f"**{c.verdict}**" if c.verdict == "worse" else c.verdict,
            c.why or "–",
        )
        for c in sorted(comparisons, key=lambda c: (GRAVEST.index(c.verdict), c.key))
    ]
    return "\n".join(
        [
            f"### Benchmarks: {overall(comparisons)}",
            "",
            f"`{head}` against `{base}` on {machine['device']}, {machine['cores']} cores. Speed is "
            "head over base ± its standard error, memory head over base.",
            "",
            harness.format_table(header, rows),
            "",
            _describe_noise(comparisons, same_code=base == head),
            "",
            f"Worse: slower by more than {TOLERANCE:.0%} and three standard errors, more memory by "
            f"{MEMORY_TOLERANCE:.0%}, or one more of what is counted. Too noisy: three standard "
            f"errors are more than {TOLERANCE:.0%}, and nothing else is worse.",
        ]
    )


def _describe_noise(comparisons: Sequence[Comparison], *, same_code: bool) -> str:
    """How far the runs of a pair are apart, and how much of that is left after all pairs."""
    timed = {c.key: statistics.stdev(c.ratios) for c in comparisons if len(c.ratios) > 1}
    if not timed:
        return f"Noise of the machine: {_NOT_MEASURED}, which takes times and two pairs."
    noisiest = max(comparisons, key=lambda c: timed.get(c.key, 0.0))
    left = 3 * (noisiest.standard_error or 0.0)
    said = (
        f"Noise of the machine: the ratio of a pair varies by {timed[noisiest.key]:.1%} (a "
        f"standard deviation, in `{noisiest.key}`), which {noisiest.pairs} pairs bring down to "
        f"{left:.1%} (three standard errors)."
    )
    return said + " Both are the same code: what is worse is a false alarm." * same_code

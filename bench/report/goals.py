"""Makes the tables of docs/performance.md: the ceilings of machines, and goals beside floors and
measurements.

The project has goals for an H200; an H100's follow from its slower memory. A floor is the time that
the bytes or the products of an `Op`'s case take at the ceiling of a card.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from minimind_kernels import OPS
from minimind_kernels.op import PRESETS, Case, build_cases

from bench.harness import NOT_MEASURED, describe_place, format_table, with_error
from bench.kernels import (
    H100_BYTES_PER_S,
    H100_FLOPS_PER_S,
    H200_BYTES_PER_S,
    H200_FLOPS_PER_S,
)
from bench.report.tables import CARDS
from bench.results import Results, stage_of
from bench.train.goals import state_bytes, title, wanted

_CEILINGS = {
    "NVIDIA H200": (H200_BYTES_PER_S, H200_FLOPS_PER_S),
    "NVIDIA H100": (H100_BYTES_PER_S, H100_FLOPS_PER_S),
}
_LAUNCHES_US = 5.0
"""A floor below this is a floor of launches, which slower memory does not raise."""
_SPEED_SHARES = {"NVIDIA H200": 1.0, "NVIDIA H100": 0.92}
"""The share of the goals in tokens/s that a card has to reach: a fifth of a step is bound by
memory."""
_TOKENS = 16_384
_KERNEL_COLUMNS = ("floor µs", "goal µs", "measured µs")
_TRAINING_GOALS = {
    "minimind2-small": (1.6e6, 2.0e6, 2.3e6),
    "minimind2": (0.46e6, 0.55e6, 0.62e6),
    "minimind2-moe": (0.40e6, 0.50e6, 0.62e6),
}
"""Useful tokens/s of the gate, the goal and the record."""
_DECODING_GOALS = {1: 1.7, 8: 1.8, 32: 2.0}
"""The goal for the ratio of our speed to that of `transformers` on a CPU, by batch size."""


_OTHER_GOALS = (
    ("useful tokens/s over `original`", "≥ 4"),
    ("pretrain: step time over the plain loop's", "≤ 1.05"),
    ("experts: step time over a dense model's", "≤ 1.1"),
    ("peak beyond the states, KB a token", "≤ 120"),
)
"""Figures on a GPU, each with its limit."""


def ceilings_section(results: Results) -> str:
    """Makes a line for each device, with the highest ceilings in any of its results files."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for path, measured in results.files.items():
        if measured["machine"].get("ceilings"):
            found.setdefault(path.parent.name, []).append(measured["machine"])
    lines = []
    for machines in found.values():
        best = [
            max(machine["ceilings"][name] for machine in machines)
            for name in ("copy_bytes_per_s", "product_flops_per_s")
        ]
        dtype = machines[-1]["ceilings"]["product_dtype"]
        lines.append(
            [describe_place(machines[-1]), f"{best[0] / 1e9:,.0f}", f"{best[1] / 1e12:,.2f}", dtype]
        )
    for card in CARDS:
        if not any(line[0].startswith(card) for line in lines):
            lines.append([card, NOT_MEASURED, NOT_MEASURED, "bfloat16"])
    header = ("machine", "copy GB/s, read and written", "product TFLOP/s", "product in")
    return format_table(header, lines)


def kernel_goals_section(results: Results) -> str:
    """Makes a line for each kernel and preset: floor, goal and measured time on each card."""
    measured = {card: _kernel_rows(results, card) for card in CARDS}
    cases = {
        (sizes.preset, case.name): case
        for sizes in PRESETS
        for case in build_cases(sizes, _TOKENS, torch.bfloat16, "meta")
    }
    columns = [f"{card.split()[-1]}: {what}" for card in CARDS for what in _KERNEL_COLUMNS]
    lines = [
        _kernel_line(cases[preset, goal.case], goal.ways, us, measured)
        for _, op in sorted(OPS.items())
        for goal in op.goals
        for preset, us in goal.us.items()
    ]
    return format_table(("operation", "preset", *columns), lines)


def _kernel_rows(results: Results, card: str) -> dict[tuple[str, str], float]:
    """Gives the newest median µs of our kernels on a card, by preset and name."""
    rows = (
        row
        for found in results.oldest_first("kernels")
        for row in found["rows"]
        if found["machine"]["device"].startswith(card) and row.get("contender") == "minimind"
    )
    return {(row["preset"], row["name"]): row["median_us"] for row in rows if row["median_us"]}


def _kernel_line(
    case: Case,
    ways: Sequence[str],
    goal: float,
    measured: Mapping[str, Mapping[tuple[str, str], float]],
) -> list[str]:
    """Makes the line of a case; `ways` are the directions that the goal counts together, and `goal`
    is the µs of an H200."""
    cells = [f"`{case.name}` {' + '.join(ways)}", case.sizes.preset]
    limit = max(_floor_us(case, ways, CARDS[0]), _LAUNCHES_US)
    for card in CARDS:
        floor = _floor_us(case, ways, card)
        times = [measured[card].get((case.sizes.preset, f"{case.name}.{way}")) for way in ways]
        known = [time for time in times if time is not None]
        cells += [
            f"{floor:,.1f}",
            f"≤ {goal * max(floor, _LAUNCHES_US) / limit:,.0f}",
            f"{sum(known):,.1f}" if len(known) == len(times) else NOT_MEASURED,
        ]
    return cells


def _floor_us(case: Case, ways: Sequence[str], card: str) -> float:
    """Gives the time that bytes or products take, whichever is longer."""
    bytes_per_s, flops_per_s = _CEILINGS[card]
    moved = sum(getattr(case, f"{way}_bytes") for way in ways)
    flops = sum(getattr(case, f"{way}_flops") for way in ways)
    return max(moved / bytes_per_s, flops / flops_per_s) * 1e6


def training_goals_section(results: Results) -> str:
    header = ("card", "model", "gate", "goal", "record", "useful tokens/s", "MFU", "MFU, causal")
    lines = []
    for card, (model, goals) in itertools.product(CARDS, _TRAINING_GOALS.items()):
        best = max(
            _engine_rows(results, card, model),
            key=lambda row: row["useful_tokens_per_s"],
            default=None,
        )
        figures = [NOT_MEASURED] * 3
        if best:
            shares = (f"{best[name]:.1%}" for name in ("mfu", "mfu_causal"))
            figures = [f"{best['useful_tokens_per_s']:,.0f}", *shares]
        wanted = (f"{goal * _SPEED_SHARES[card] / 1e6:.2f}M" for goal in goals)
        lines.append([card, model, *wanted, *figures])
    return format_table(header, lines)


def _engine_rows(results: Results, card: str, model: str) -> Iterator[Mapping[str, Any]]:
    for found in results.oldest_first("train_step"):
        of_model = (row for row in found["rows"] if row["model"] == model)
        if found["machine"]["device"].startswith(card):
            yield from (row for row in of_model if _is_pretraining(row) and "profile" not in row)


def _is_pretraining(row: Mapping[str, Any]) -> bool:
    return row["name"] == "engine" and stage_of(row) == "pretrain"


def other_goals_section(results: Results) -> str:
    """Makes a line for each goal that compares rows of one results file, on every device."""
    header = ("machine", "figure", "goal", "measured", "file")
    measured = [*results.with_paths("train_step"), *results.with_paths("inference")]
    lines = [line for path, found in measured for line in _ratios(path, found)]
    missing: list[list[str]] = []
    for card, goals in itertools.product(CARDS, _OTHER_GOALS):
        if not any(line[0].startswith(card) for line in lines):
            missing.append([card, *goals, NOT_MEASURED, "none"])
    lines += missing
    return format_table(header, lines)


def _ratios(path: Path, found: Mapping[str, Any]) -> Iterator[list[str]]:
    machine = found["machine"]
    on_gpu = machine["kind"] == "gpu"

    def line(figure: str, goal: str, value: float, error: float | None = None) -> list[str]:
        return [describe_place(machine), figure, goal, with_error(value, error), path.stem]

    for row in found["rows"]:
        if (ratio := row.get("ratio_to_original")) and row["name"] == "engine":
            goal = "≥ 4" if on_gpu else "≥ 5.5"
            error = row["ratio_to_original_error"]
            yield line(f"{row['model']}: useful tokens/s over `original`", goal, ratio, error)
        if row.get("ratio_to_transformers") and row["name"] == "minimind" and not on_gpu:
            goal = _DECODING_GOALS.get(row["batch"])
            figure = f"{row['model']}: decoding over `transformers`, batch {row['batch']}"
            ratio, error = row["ratio_to_transformers"], row["ratio_error"]
            yield line(figure, f"≥ {goal}" if goal else "–", ratio, error)
        if row.get("ratio_to_llama_cpp") and row["name"] == "minimind":
            of = f"{row['model']}, {row['precision']}: "
            goal = "≥ 0.95" if row["batch"] == 1 else "≥ 1"
            ratio, error = row["ratio_to_llama_cpp"], row["ratio_to_llama_cpp_error"]
            figure = f"{of}decoding over llama.cpp, batch {row['batch']}"
            yield line(figure, goal, ratio, error)
            first, error = row["first_token_to_llama_cpp"], row["first_token_to_llama_cpp_error"]
            if row["batch"] == 1:
                yield line(f"{of}time of a first token over llama.cpp's", "≤ 1", first, error)
        if row.get("ratio_to_free") and row["batch"] == 32:
            figure = f"{row['model']}: decoding held to a JSON schema over free, batch 32"
            yield line(figure, "≥ 0.9", row["ratio_to_free"], row["ratio_to_free_error"])
        is_smallest = row["model"] == "minimind2-small" and _is_pretraining(row)
        if on_gpu and is_smallest and row["peak_bytes"]:
            beyond = row["peak_bytes"] - state_bytes(row)
            tokens = row["micro_batch"] * row["seq_len"]
            figure = f"{row['ds_config']}, {tokens:,} tokens: peak beyond the states, KB a token"
            yield line(figure, "≤ 120", beyond / tokens / 1e3)
    for goal in found.get("goals", ()):
        yield line(title(goal), wanted(goal), goal["value"], goal["standard_error"])


def profile_section(results: Results) -> str:
    """Shows one step of each profiled row: the GPU's kernels, and the share of time in which it was
    idle."""
    header = ("machine", "row", "step ms", "GPU idle", "launches", "longest kernels, µs")
    lines = []
    for _, found in results.with_paths("train_step"):
        for row in found["rows"]:
            profile = row.get("profile")
            if not profile or profile["idle_share"] is None:
                continue
            longest = ", ".join(f"{k['name'][:40]} {k['us']:,.0f}" for k in profile["kernels"][:3])
            lines.append([
                describe_place(found["machine"]), f"{row['model']} {row['name']}",
                f"{profile['wall_us'] / 1e3:.1f}", f"{profile['idle_share']:.0%}",
                str(row["cuda_launches"] or NOT_MEASURED), longest,
            ])  # fmt: skip
    if not lines:
        return f"Profiles of a step on a GPU: {NOT_MEASURED}."
    return format_table(header, lines)

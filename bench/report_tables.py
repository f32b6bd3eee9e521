"""The tables of README.md: training figures, and scaling over numbers of GPUs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.harness import format_table
from bench.report_plots import scaling_figure
from bench.results import Results
from bench.scaling_report import format_rows
from minimind.stages import STAGES

NOT_MEASURED = "not measured"
SHOWN = ("original", "compiled", "transformers", "plain_loop", "engine")
"""Rows of bench.train_step; the others are what a stage is judged by, in its results' goals."""
GOALS = ("minimind2-small", "minimind2", "minimind2-moe")
"""Models of which the project means to know the speed on one of the CARDS."""
CARDS = ("NVIDIA H200", "NVIDIA H100")
"""GPUs that the project has goals for, by how their names begin."""
_KERNELS = {"torch": "without our kernels", "Liger-Kernel": "with Liger-Kernel"}
"""What of a row's kernels its name says."""


def training_section(results: Results) -> str:
    """Every training benchmark, by machine, stage and row; each with the commit it was taken at."""
    header = (
        "machine", "model", "row", "useful tokens/s", "p10–p90", "× original", "MFU", "MFU, causal",
        "peak MB", "commit",
    )  # fmt: skip
    lines = [
        line for found in results.by_device("train_step").values() for line in _training(found)
    ]
    measured = {(line[0], line[1]) for line in lines}
    for card, model in itertools.product(CARDS, GOALS):
        if not any(machine.startswith(card) and m == model for machine, m in measured):
            lines.append([card, model, "engine", *[NOT_MEASURED] * 7])
    return format_table(header, lines)


def _training(found: Sequence[tuple[Path, Mapping[str, Any]]]) -> Iterator[list[str]]:
    stages = list(STAGES)
    for _, results in sorted(found, key=lambda item: stages.index(_stage(item[1]["rows"][0]))):
        machine = results["machine"]
        for row in results["rows"]:
            # A profiled run has few steps: its times are in the profile's table.
            if row["name"] not in SHOWN or row["useful_tokens_per_s"] is None or "profile" in row:
                continue
            ratio = row.get("ratio_to_original")
            yield [
                describe(machine),
                row["model"],
                _row_name(row),
                f"{row['useful_tokens_per_s']:,.0f}",
                f"{row['useful_tokens_per_s_p10']:,.0f}–{row['useful_tokens_per_s_p90']:,.0f}",
                NOT_MEASURED if ratio is None else f"{ratio:.2f}",
                _percent(row["mfu"]),
                _percent(row["mfu_causal"]),
                NOT_MEASURED if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:,.0f}",
                (machine["commit"] or "not known")[:9],
            ]


def _stage(row: Mapping[str, Any]) -> str:
    return row.get("stage") or "pretrain"


def _row_name(row: Mapping[str, Any]) -> str:
    parts = [row["name"].replace("_", " "), row["precision"], row["ds_config"] or ""]
    parts += [_KERNELS.get(row.get("kernels") or "", "")]
    return " ".join(part for part in [_stage(row), *parts] if part)


def cards_section(results: Results) -> str:
    """Of each GPU that there are goals for, what was measured on it and at which commits."""
    header = ("card", "measured", "commits")
    lines = []
    for card in CARDS:
        found = [f for f in results.files.values() if f["machine"]["device"].startswith(card)]
        commits = sorted({(f["machine"]["commit"] or "not known")[:9] for f in found})
        benchmarks = sorted({f["benchmark"] for f in found})
        lines.append([card, ", ".join(benchmarks) or NOT_MEASURED, ", ".join(commits) or "none"])
    return format_table(header, lines)


def scaling_section(results: Results) -> str:
    """A table and a picture for each device, and a line where no GPU was measured."""
    parts = []
    for folder, found in results.by_device("scaling").items():
        for path, measured in found:
            machine, rows = measured["machine"], measured["rows"]
            if not rows:
                continue
            first = rows[0]
            threads = (
                f", {first['threads']} thread{'s' * (first['threads'] > 1)} a rank"
                if machine["kind"] == "cpu"
                else ""
            )
            figure = scaling_figure(folder, path.stem)
            parts += [
                f"{first['model']} with {first['ds_config']} on {describe(machine)}{threads}; "
                "`~` marks a prediction, in brackets its error where the count was measured:",
                format_rows(rows),
                f"![Tokens/s, efficiency, time and memory over ranks]({figure.as_posix()})",
            ]
    devices = {found["machine"]["device"] for found in results.oldest_first("scaling")}
    if missing := [card for card in CARDS if not any(d.startswith(card) for d in devices)]:
        parts.append(f"Scaling over 2, 4 and 8 of {' or '.join(missing)}: {NOT_MEASURED}.")
    return "\n\n".join(parts)


def describe(machine: Mapping[str, Any]) -> str:
    if machine["kind"] == "cpu":
        return f"{machine['device']}, {machine['cores']} cores"
    return machine["device"]


def _percent(share: float | None) -> str:
    return "not known" if share is None else f"{share:.1%}"

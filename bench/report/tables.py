"""Makes the tables of measurements: training, scaling, memory and data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import bench.data.__main__ as data
from bench.harness import (
    NOT_MEASURED,
    Row,
    describe_place,
    format_table,
    rate_range,
    shown,
)
from bench.report.plots import scaling_figure
from bench.results import Results, stage_of
from bench.scaling import rows as scaling
from minimind.rehearsal.holders import HOLDERS
from minimind.stages import STAGES

SHOWN = ("original", "compiled", "transformers", "plain_loop", "engine")
"""The rows of bench.train that the table shows; the goals in the results judge the other rows."""
GOALS = ("minimind2-small", "minimind2", "minimind2-moe")
"""The models that have goals on the CARDS."""
CARDS = ("NVIDIA H200", "NVIDIA H100")
"""The beginnings of the names of GPUs that the project has goals for."""
_KERNELS = {"torch": "without our kernels", "Liger-Kernel": "with Liger-Kernel"}
"""The words for kernels other than the project's own in a row's name."""


def training_section(results: Results) -> str:
    """Makes a line for each row of every training benchmark, with its machine, stage and commit."""
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
    for _, results in sorted(found, key=lambda item: stages.index(stage_of(item[1]["rows"][0]))):
        machine = results["machine"]
        for row in results["rows"]:
            # A profiled run has few steps: its times are in the profile's table.
            if row["name"] not in SHOWN or row["useful_tokens_per_s"] is None or "profile" in row:
                continue
            yield [
                describe_place(machine),
                row["model"],
                _row_name(row),
                shown(row["useful_tokens_per_s"]),
                rate_range(row),
                shown(row.get("ratio_to_original"), ".2f"),
                *(shown(row[name], ".1%", missing="not known") for name in ("mfu", "mfu_causal")),
                shown(row["peak_bytes"], per=1e6),
                (machine["commit"] or "not known")[:9],
            ]


def _row_name(row: Mapping[str, Any]) -> str:
    parts = [row["name"].replace("_", " "), row["precision"], row["ds_config"] or ""]
    parts += [_KERNELS.get(row.get("kernels") or "", "")]
    return " ".join(part for part in [stage_of(row), *parts] if part)


def cards_section(results: Results) -> str:
    """Lists for each card with goals which benchmarks ran on it, and at which commits."""
    header = ("card", "measured", "commits")
    lines = []
    for card in CARDS:
        found = [f for f in results.files.values() if f["machine"]["device"].startswith(card)]
        commits = sorted({(f["machine"]["commit"] or "not known")[:9] for f in found})
        benchmarks = sorted({f["benchmark"] for f in found})
        lines.append([card, ", ".join(benchmarks) or NOT_MEASURED, ", ".join(commits) or "none"])
    return format_table(header, lines)


def scaling_section(results: Results) -> str:
    """Makes a table for each device and JSON, a picture for each device, and a line that names the
    cards that were not measured."""
    parts = []
    for folder, found in results.by_device("scaling").items():
        for path, measured in found:
            machine, rows = measured["machine"], measured["rows"]
            for ds_config in dict.fromkeys(row["ds_config"] for row in rows):
                of_one = [row for row in rows if row["ds_config"] == ds_config]
                place = describe_place(machine)
                if machine["kind"] == "cpu":
                    threads = of_one[0]["threads"]
                    place += f", {threads} thread{'s' * (threads > 1)} a rank"
                parts += [
                    f"{of_one[0]['model']} with {ds_config} on {place}; `~` marks a prediction, in "
                    "brackets its error where the count was measured:",
                    scaling.format_rows(of_one),
                ]
            if rows:
                figure = scaling_figure(folder, path.stem).relative_to("docs").as_posix()
                parts.append(f"![Tokens/s, efficiency, time and memory over ranks]({figure})")
    devices = {found["machine"]["device"] for found in results.oldest_first("scaling")}
    if missing := [card for card in CARDS if not any(d.startswith(card) for d in devices)]:
        parts.append(f"Scaling over 2, 4 and 8 of {' or '.join(missing)}: {NOT_MEASURED}.")
    return "\n\n".join(parts)


def data_section(results: Results) -> str:
    """Makes the table of tokenising, packing and loading for each machine."""
    return _tables(results, "data", "Tokenising, packing and loading", data.format_rows)


def memory_section(results: Results) -> str:
    """Makes a table of the MB that a rank holds, by holder as rehearsed, and the measured peak."""

    def table(rows: Sequence[Row]) -> str:
        held_by_row = [(row, (row.get("prediction") or {}).get("holders")) for row in rows]
        known = [(row, held) for row, held in held_by_row if held]
        names = [name for name in HOLDERS if any(held.get(name) for _, held in known)]
        header = ("model", "JSON", "ranks", *names, "peak MB", "measured MB",
                  "rehearsed / measured")  # fmt: skip
        cells = []
        for row, held in known:
            total, peak = sum(held.values()), row.get("peak_bytes")
            parts = [shown(held.get(name, 0), ",.1f", 1e6) for name in names]
            cells.append([
                row["model"], row["ds_config"], str(row["world_size"]), *parts,
                shown(total, ",.1f", 1e6), shown(peak, ",.1f", 1e6),
                f"{total / peak:.3f}" if peak else "–",
            ])  # fmt: skip
        return format_table(header, cells) if cells else ""

    benchmarks = ("memory", "scaling")
    parts = [_tables(results, name, "Memory by holder", table) for name in benchmarks]
    found = [part for part in parts if not part.endswith(f"{NOT_MEASURED}.")]
    return "\n\n".join(found) or parts[0]


def _tables(
    results: Results, benchmark: str, title: str, table: Callable[[Sequence[Row]], str]
) -> str:
    parts = [
        f"{describe_place(found['machine'])}:\n\n{made}"
        for found in results.oldest_first(benchmark)
        if (made := table(found["rows"]))
    ]
    return "\n\n".join(parts) or f"{title}: {NOT_MEASURED}."

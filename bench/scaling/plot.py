"""Draws the picture of bench.scaling: tokens/s, efficiency, time and memory over the number of
ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.train.step_parts import PARTS
from minimind.pictures.axes import legend_below
from minimind.pictures.style import COLORS, GREY, PAPER, picture

_COLORS = {"strong": COLORS[0], "weak": COLORS[1]}
_MARKERS = {"strong": "o", "weak": "s"}
_PART_COLORS = dict(zip(PARTS, COLORS, strict=False))
_NEGLIGIBLE = 0.005
"""Parts below this share of every step are left out of the legend."""


def of_first_json(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Picks the rows of the first JSON: one picture shows one JSON."""
    return [row for row in rows if row["ds_config"] == rows[0]["ds_config"]]


def plot_rows(rows: Sequence[Mapping[str, Any]], machine: Mapping[str, Any], path: Path) -> None:
    """Writes a PNG. Measured points are filled; predicted ones are hollow and dashed."""
    counts = sorted({row["world_size"] for row in rows})
    with picture(path, 11, 8) as figure:
        (speed, efficiency), (time, memory) = figure.subplots(2, 2)
        _draw_speed(speed, rows, counts)
        _draw_lines(efficiency, rows, counts, lambda values: 100 * values["efficiency"])
        efficiency.axhline(100, color=GREY, linewidth=1, linestyle=":")
        efficiency.set(title="Efficiency of a rank", ylabel="% of a rank at the smallest count")
        efficiency.set_ylim(0, 1.05 * max(100, efficiency.get_ylim()[1]))
        _draw_time(time, rows)
        _draw_lines(memory, rows, counts, lambda values: (values["peak_bytes"] or math.nan) / 1e6)
        memory.set(title="Peak memory of a rank", ylabel="MB of tensors")
        memory.set_ylim(0, 1.06 * memory.get_ylim()[1])
        for axes in (speed, efficiency, memory):
            axes.set_xlabel("ranks")
        legend_below(memory, of=speed)
        figure.suptitle(_title(rows, machine), x=0.01, horizontalalignment="left")


def _title(rows: Sequence[Mapping[str, Any]], machine: Mapping[str, Any]) -> str:
    first = rows[0]
    threads = (
        f", {first['threads']} thread{'s' * (first['threads'] > 1)} a rank"
        if machine["kind"] == "cpu"
        else ""
    )
    return (
        f"{first['model']} ({first['parameters'] / 1e6:.0f}M parameters), {first['ds_config']}, "
        f"{first['micro_batch']} x {first['seq_len']} tokens a micro-batch\n"
        f"{machine['device']}{threads}, {machine['date'][:10]}"
    )


def _draw_speed(axes: Any, rows: Sequence[Mapping[str, Any]], counts: Sequence[int]) -> None:
    first = rows[0]
    per_rank = first["useful_tokens_per_s"] / first["world_size"]
    ideal = [per_rank * n for n in counts]
    axes.plot(counts, ideal, color=GREY, linewidth=1, linestyle=":", label="ideal")
    _draw_lines(axes, rows, counts, lambda values: values["useful_tokens_per_s"])
    for row in rows:
        if not row["predicted"]:
            p10, p90 = row["useful_tokens_per_s_p10"], row["useful_tokens_per_s_p90"]
            axes.vlines(row["world_size"], p10, p90, color=_COLORS[row["name"]], linewidth=2)
    axes.set(title="Speed", ylabel="useful tokens/s, all ranks")
    axes.set_yscale("log", base=2)
    axes.set_yticks(ideal, [f"{value:,.0f}" for value in ideal])
    axes.minorticks_off()


def _draw_lines(
    axes: Any, rows: Sequence[Mapping[str, Any]], counts: Sequence[int], value: Any
) -> None:
    for mode in dict.fromkeys(row["name"] for row in rows):
        of_mode = [row for row in rows if row["name"] == mode]
        style = {"color": _COLORS[mode], "marker": _MARKERS[mode], "markersize": 7}
        predicted = [
            (row["world_size"], value(row["prediction"])) for row in of_mode if "prediction" in row
        ]
        if predicted:
            axes.plot(
                *zip(*predicted, strict=True), linestyle="--", linewidth=1, alpha=0.8,
                markerfacecolor=PAPER, label=f"{mode}, predicted", **style,
            )  # fmt: skip
        measured = [(row["world_size"], value(row)) for row in of_mode if not row["predicted"]]
        axes.plot(*zip(*measured, strict=True), linestyle="-", label=f"{mode}, measured", **style)
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()


def _draw_time(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draws each measured run's step as a bar of its parts."""
    measured = [row for row in rows if not row["predicted"]]
    labels = [f"{row['name']}, {row['world_size']}" for row in measured]
    left = [0.0] * len(measured)
    for part in PARTS:
        shares = [row["step_parts_s"][part] / sum(row["step_parts_s"].values()) for row in measured]
        if max(shares) < _NEGLIGIBLE:
            continue
        seconds = [
            share * row["step_s"]["median"] for share, row in zip(shares, measured, strict=True)
        ]
        axes.barh(labels, seconds, left=left, color=_PART_COLORS[part], edgecolor=PAPER,
                  label=part.replace("_", " "), height=0.6)  # fmt: skip
        left = [a + b for a, b in zip(left, seconds, strict=True)]
    axes.invert_yaxis()
    axes.set(title="Where a step's time goes, as measured", xlabel="seconds a step")
    axes.set_ylabel("scaling, ranks")
    axes.grid(visible=False, axis="y")
    axes.set_axisbelow(True)
    legend_below(axes)

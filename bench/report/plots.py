"""Draws the pictures of docs/figures: scaling, kernels beside their floor, loss over minutes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.harness import ROOT
from bench.pictures import picture
from bench.results import Results
from bench.scaling.plot import of_first_json, plot_rows

FIGURES = Path("docs/figures")
"""The folder below the repository's root."""
_COLORS = {
    "minimind": "#1f4e8c", "eager": "#9db8d9", "torch.compile": "#e3b23c", "liger": "#d1495b",
    "liger-cute": "#8d2a3a", "quack": "#4f9d69", "cut-cross-entropy": "#7b5ea7",
}  # fmt: skip


def scaling_figure(folder: str, stem: str) -> Path:
    return FIGURES / f"{stem}-{folder}.png"


def draw_plots(results: Results) -> Iterator[Path]:
    """Draws a picture of each device's results that have one; yields the files."""
    for folder, found in results.by_device("scaling").items():
        for path, measured in found:
            if measured["rows"]:
                figure = ROOT / scaling_figure(folder, path.stem)
                plot_rows(of_first_json(measured["rows"]), measured["machine"], figure)
                yield figure
    for folder, found in results.by_device("kernels").items():
        timed = [row for _, m in found for row in m["rows"] if row.get("median_us")]
        if timed:
            figure = ROOT / FIGURES / f"kernels-{folder}.png"
            _plot_kernels(timed, found[-1][1]["machine"], figure)
            yield figure
    for folder, found in results.by_device("loss_curves").items():
        if rows := [row for _, measured in found for row in measured["rows"]]:
            figure = ROOT / FIGURES / f"loss_curves-{folder}.png"
            _plot_curves(rows, found[-1][1]["machine"]["device"], figure)
            yield figure


def _plot_curves(rows: Sequence[Mapping[str, Any]], device: str, path: Path) -> None:
    """Shows held-out loss over the time that each row has trained for."""
    with picture(path, 8, 4.5) as figure:
        axes = figure.subplots()
        for row in rows:
            points = row["points"]
            label = f"{row['name']}, {row['precision']}: {points[-1]['tokens'] / 1e6:,.1f}M tokens"
            axes.plot([p["seconds"] / 60 for p in points], [p["loss"] for p in points], label=label)
        axes.set(xlabel="minutes of training", ylabel="held-out loss")
        axes.set_title(f"{rows[0]['model']}, {device}")
        axes.legend()


def _plot_kernels(
    rows: Sequence[Mapping[str, Any]], machine: Mapping[str, Any], path: Path
) -> None:
    """Shows each kernel's time over its floor, in a line for each operation; 1 is the floor."""
    preset = "minimind2-small" if any(r["preset"] == "minimind2-small" for r in rows) else None
    shown = [row for row in rows if preset is None or row["preset"] == preset]
    names = sorted({row["name"] for row in shown}, reverse=True)
    with picture(path, 8, 1.5 + 0.28 * len(names)) as figure:
        axes = figure.subplots()
        for contender, color in _COLORS.items():
            of_one = [row for row in shown if row["contender"] == contender]
            if not of_one:
                continue
            axes.plot(
                [row["median_us"] / row["floor_us"] for row in of_one],
                [names.index(row["name"]) for row in of_one],
                "o", color=color, label=contender, markersize=7 if contender == "minimind" else 5,
            )  # fmt: skip
        axes.axvline(1, color="#7a7f87", linewidth=1, linestyle=":")
        axes.set_yticks(range(len(names)), names)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
        axes.set(xlabel="time over the floor of this session's ceilings")
        axes.set_title(f"{shown[0]['preset']}, {shown[0]['dtype']}, {machine['device']}")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))

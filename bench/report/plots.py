"""Draws the pictures of docs/figures: scaling, kernels beside their floor, loss over tokens and
minutes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.harness import ROOT
from bench.learning.results import plot_methods
from bench.results import Results
from bench.scaling.plot import of_first_json, plot_rows
from minimind.pictures.axes import legend_beside
from minimind.pictures.style import GREY, line_styles, picture

FIGURES = Path("docs/figures")
"""The folder below the repository's root."""
_CONTENDERS = line_styles(
    ("minimind", "liger", "eager", "liger-cute", "torch.compile", "quack", "cut-cross-entropy")
)


def scaling_figure(folder: str, stem: str) -> Path:
    return FIGURES / f"{stem}-{folder}.png"


def draw_plots(results: Results) -> Iterator[Path]:
    """Draws the pictures of each device's results; yields their files."""
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
    for folder, found in results.by_device("learning").items():
        for path, measured in found:
            if path.stem == "learning" and measured["rows"]:
                figure = ROOT / FIGURES / f"learning-{folder}.png"
                plot_methods(measured, figure)
                yield figure


def _plot_kernels(
    rows: Sequence[Mapping[str, Any]], machine: Mapping[str, Any], path: Path
) -> None:
    """Shows each kernel's time over its floor, in a line for each operation; 1 is the floor."""
    preset = "minimind2-small" if any(r["preset"] == "minimind2-small" for r in rows) else None
    shown = [row for row in rows if preset is None or row["preset"] == preset]
    names = sorted({row["name"] for row in shown}, reverse=True)
    with picture(path, 8, 1.5 + 0.28 * len(names)) as figure:
        axes = figure.subplots()
        for contender, look in _CONTENDERS.items():
            of_one = [row for row in shown if row["contender"] == contender]
            if not of_one:
                continue
            axes.plot(
                [row["median_us"] / row["floor_us"] for row in of_one],
                [names.index(row["name"]) for row in of_one],
                label=contender, markersize=8 if contender == "minimind" else 5,
                **{**look, "linestyle": "none"},
            )  # fmt: skip
        axes.axvline(1, color=GREY, linewidth=1, linestyle=":")
        axes.set_yticks(range(len(names)), names)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
        axes.set(xlabel="time over the floor of this session's ceilings")
        axes.set_title(f"{shown[0]['preset']}, {shown[0]['dtype']}, {machine['device']}")
        legend_beside(figure, axes)

"""Draws plots of a run's metrics.csv."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from minimind.pictures.axes import count_axis, legend_above
from minimind.pictures.curves import Curve, Numbers, draw_curves
from minimind.pictures.style import COLORS, picture

_TITLE_CHARACTERS = 32


def plot_losses(rows: Sequence[dict[str, str]], path: Path) -> None:
    """Plots training loss, its running mean and validation loss over optimizer steps."""
    steps, losses = _read_column(rows, "loss")
    val_steps, val_losses = _read_column(rows, "val_loss")
    training = Curve(x=steps, y=losses, color=COLORS[0], label="training loss")
    validation = Curve(
        x=val_steps, y=val_losses, color=COLORS[1], label="validation loss", smooth=False
    )
    with picture(path, 8, 4.5) as figure:
        axes = figure.add_subplot()
        draw_curves(axes, [training, validation])
        count_axis(axes)
        axes.set_ylabel("loss")
        legend_above(figure, axes)


def plot_columns(rows: Sequence[dict[str, str]], columns: Sequence[str], path: Path) -> None:
    """Draws a small plot, with a running mean, of each of `columns` that holds numbers; draws
    nothing if none does."""
    shown = {name: _read_column(rows, name) for name in columns}
    shown = {name: points for name, points in shown.items() if len(points[0])}
    if not shown:
        return
    # Three or four beside one another, whichever leaves less room empty.
    across = min(len(shown), min((4, 3), key=lambda across: (-len(shown) % across, -across)))
    down = -(-len(shown) // across)
    with picture(path, 3.1 * across, 2.1 * down + 0.4) as figure:
        for place, (name, (steps, values)) in enumerate(shown.items(), start=1):
            axes = figure.add_subplot(down, across, place)
            title, scale = _title(name)
            draw_curves(axes, [Curve(x=steps, y=values * scale, color=COLORS[0])])
            count_axis(axes, None)
            axes.locator_params(nbins=4)
            axes.set_title(textwrap.fill(title, _TITLE_CHARACTERS), fontsize=9)
            axes.tick_params(labelsize=8)
        figure.supxlabel("optimizer step", fontsize=9)


def _read_column(rows: Sequence[dict[str, str]], name: str) -> tuple[Numbers, Numbers]:
    """Gives the steps at which the column has a value, and the values."""
    found = [(row["step"], row[name]) for row in rows if row.get(name)]
    return np.array([step for step, _ in found], float), np.array([v for _, v in found], float)


def _title(column: str) -> tuple[str, float]:
    """Gives a column's title with its unit, and what its values are multiplied by to have it."""
    scale = 1.0
    if column.endswith("_bytes"):
        column, scale = column.removesuffix("bytes") + "memory (MB)", 1e-6
    column = re.sub(r"_per_s$", "/s", column)
    column = re.sub(r"_s$", " (s)", column)
    return column.replace("_", " "), scale

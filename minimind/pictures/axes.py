"""Writes the numbers on axes with thousands separators and without offsets, and places legends."""

from __future__ import annotations

import re
from typing import Any

_BELOW_LABEL_IN = 0.45
"""How far below an axis its tick labels and its label reach."""


def format_number(value: float) -> str:
    """Gives a number as an axis shows it: 12,500, 0.3, −2, 5e−7."""
    text = re.sub(r"e([+-])0*", r"e\1", f"{value:,.10g}").replace("e+", "e")
    return "0" if text == "-0" else text.replace("-", "\N{MINUS SIGN}")


def format_axes(figure: Any) -> list[Any]:
    """Gives the project's format to every axis that has matplotlib's own formatter of numbers.
    Returns the other ones: a formatter or labels that a caller chose stay."""
    from matplotlib.ticker import FuncFormatter, LogFormatter, ScalarFormatter

    class LogNumbers(LogFormatter):
        """Labels the ticks that LogFormatter would label."""

        def __call__(self, x: float, pos: int | None = None) -> str:
            return format_number(x) if super().__call__(x, pos) else ""

    others: list[Any] = []
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if isinstance(axis.get_major_formatter(), LogFormatter):
                axis.set_major_formatter(LogNumbers(axis.get_transform().base))
            elif isinstance(axis.get_major_formatter(), ScalarFormatter):
                axis.set_major_formatter(FuncFormatter(lambda value, _: format_number(value)))
            else:
                others.append(axis)
            if isinstance(axis.get_minor_formatter(), LogFormatter):
                axis.set_minor_formatter(LogNumbers(axis.get_transform().base))
    return others


def count_axis(axes: Any, label: str | None = "optimizer step") -> None:
    """Labels the horizontal axis as a count: its ticks are whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True, min_n_ticks=1))
    axes.set_xlabel(label or "")


def legend_beside(figure: Any, axes: Any) -> None:
    """Puts the legend of `axes` to the right of all plots of `figure`, where it hides no data; does
    nothing where no line has a name."""
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        figure.legend(handles, labels, loc="outside right upper")


def legend_above(figure: Any, axes: Any) -> None:
    """Puts the legend of `axes` in one row above all plots of `figure`, which must have no title of
    its own there; does nothing where no line has a name."""
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        figure.legend(handles, labels, loc="outside upper left", ncols=len(labels))


def legend_below(axes: Any, of: Any = None) -> None:
    """Puts the legend of `of` (by default of `axes`) below `axes` and its label, in two columns;
    does nothing where no line has a name."""
    from matplotlib.transforms import ScaledTranslation

    handles, labels = (of or axes).get_legend_handles_labels()
    if labels:
        below_label = ScaledTranslation(0, -_BELOW_LABEL_IN, axes.figure.dpi_scale_trans)
        axes.legend(
            handles, labels, loc="upper center", ncols=2, bbox_to_anchor=(0.5, 0.0),
            bbox_transform=axes.transAxes + below_label,
        )  # fmt: skip

"""Makes the tables and the picture of methods from their curves."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import NOT_MEASURED, describe_place, format_table
from bench.results import Results
from minimind.pictures.axes import legend_beside
from minimind.pictures.curves import Curve, draw_curves
from minimind.pictures.style import line_styles, picture

_MEASURED = Mapping[str, Any]
"""Holds the content of a results file of bench.learning."""


def learning_section(results: Results) -> str:
    """Makes a table for each results file, the methods in the order in which they were measured."""
    parts = []
    for _, measured in results.with_paths("learning"):
        machine, options = measured["machine"], measured["arguments"]
        changes = ", ".join(options["set"]) or "as it is"
        parts.append(
            f"{options['model']} ({changes}), {options['tokens']:,} tokens, "
            f"{describe_place(machine)}, commit {(machine['commit'] or 'not known')[:9]}:\n\n"
            + _table(measured["rows"])
        )
    return "\n\n".join(parts) or NOT_MEASURED


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    methods = _by_method(rows)
    goal = _mean_last(methods["original"]) if "original" in methods else None
    header = ["method", "what", "seeds", "rate", "steps", "seconds", "held-out loss"]
    header += ["the original's loss after"] if goal else []
    lines = []
    for name, of_method in methods.items():
        first, losses = of_method[0], [row["points"][-1]["loss"] for row in of_method]
        spread = f" ± {statistics.stdev(losses):.3f}" if len(losses) > 1 else ""
        line = [
            name, first["what"], str(len(of_method)), f"{first['learning_rate']:.0e}",
            f"{first['points'][-1]['steps']:,}",
            f"{statistics.mean(row['points'][-1]['seconds'] for row in of_method):,.0f}",
            f"{statistics.mean(losses):.3f}{spread}",
        ]  # fmt: skip
        lines.append([*line, _reached(of_method, goal)] if goal else line)
    return format_table(tuple(header), lines)


def _by_method(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    methods: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        methods.setdefault(row["name"], []).append(row)
    return methods


def _mean_last(rows: Sequence[Mapping[str, Any]]) -> float:
    return statistics.mean(row["points"][-1]["loss"] for row in rows)


def _reached(rows: Sequence[Mapping[str, Any]], goal: float) -> str:
    """Tells after how many seconds the mean curve came down to a loss."""
    seconds, losses = _mean_curve(rows, "seconds")
    below = np.nonzero(losses <= goal)[0]
    if not len(below):
        return "not reached"
    at = int(below[0])
    if at:
        share = (losses[at - 1] - goal) / (losses[at - 1] - losses[at])
        return f"{seconds[at - 1] + share * (seconds[at] - seconds[at - 1]):,.0f} s"
    return f"{seconds[0]:,.0f} s"


def _mean_curve(rows: Sequence[Mapping[str, Any]], over: str) -> tuple[np.ndarray, np.ndarray]:
    points = [[(point[over], point["loss"]) for point in row["points"]] for row in rows]
    x, losses = np.mean(points, axis=0).T
    return x, losses


def plot_methods(measured: _MEASURED, path: Path) -> None:
    """Draws each method's held-out loss, as a mean over its seeds, over tokens and over minutes."""
    methods = _by_method(measured["rows"])
    with picture(path, 10, 4.5) as figure:
        by_tokens, by_time = figure.subplots(1, 2, sharey=True)
        for axes, over, unit in ((by_tokens, "tokens", 1e6), (by_time, "seconds", 60)):
            curves = []
            for (name, rows), look in zip(
                methods.items(), line_styles(methods).values(), strict=True
            ):
                x, losses = _mean_curve(rows, over)
                # From the second point on: the first is the loss of fresh weights.
                curve = Curve(x=x[1:] / unit, y=losses[1:], label=name, smooth=False, **look)
                curves.append(curve)
            draw_curves(axes, curves)
        by_tokens.set(xlabel="million tokens", ylabel="held-out loss")
        by_time.set(xlabel="minutes of training")
        options, device = measured["arguments"], measured["machine"]["device"]
        figure.suptitle(f"{options['model']} cut to two cores, {device}")
        legend_beside(figure, by_time)

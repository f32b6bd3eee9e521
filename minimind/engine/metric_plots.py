"""Draws plots of a run's metrics.csv."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from minimind.runtime.figures import save_figure

_PALE, _DARK = "#9db8d9", "#1f4e8c"
_ACROSS = 4


def plot_losses(rows: Sequence[dict[str, str]], path: Path) -> None:
    """Plots training loss, its running mean and validation loss over optimizer steps."""
    from matplotlib.figure import Figure

    learnt = [row for row in rows if row["loss"]]
    steps = [int(row["step"]) for row in learnt]
    losses = [float(row["loss"]) for row in learnt]
    validation = [(int(row["step"]), float(row["val_loss"])) for row in rows if row["val_loss"]]
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps, losses, color=_PALE, linewidth=0.8, label="training loss")
    if len(losses) >= 20:
        axes.plot(steps, _running_mean(losses), color=_DARK, label="running mean")
    if validation:
        axes.plot(*zip(*validation, strict=True), "o-", color="#d1495b", label="validation loss")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    if steps:
        axes.legend()
    save_figure(figure, path)


def plot_columns(rows: Sequence[dict[str, str]], columns: Sequence[str], path: Path) -> None:
    """Draws a small plot, with a running mean, of each of `columns` that holds numbers; draws
    nothing if none does."""
    from matplotlib.figure import Figure

    shown = {
        name: [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
        for name in columns
    }
    shown = {name: points for name, points in shown.items() if len(points) > 1}
    if not shown:
        return
    down = -(-len(shown) // _ACROSS)
    figure = Figure(figsize=(3 * _ACROSS, 1.9 * down + 0.3), dpi=110, layout="constrained")
    for place, (name, points) in enumerate(shown.items(), start=1):
        axes = figure.add_subplot(down, _ACROSS, place)
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color=_PALE, linewidth=0.8)
        if len(values) >= 20:
            axes.plot(steps, _running_mean(values), color=_DARK, linewidth=1.2)
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    save_figure(figure, path)


def _running_mean(values: Sequence[float], decay: float = 0.9) -> list[float]:
    """Gives the exponential running mean, corrected for its start (Kingma & Ba 2015, §3)."""
    means, total, weight = [], 0.0, 0.0
    for value in values:
        total = decay * total + (1 - decay) * value
        weight = decay * weight + (1 - decay)
        means.append(total / weight)
    return means

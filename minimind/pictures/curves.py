"""Draws curves over steps so that they stay readable: long ones are thinned, rough ones get a
running mean, spikes do not flatten the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minimind.pictures.axes import format_number
from minimind.pictures.style import PAPER, pale

_MOST_POINTS = 1000
"""The most points of a line: a picture has about as many pixels."""
_SMOOTHED_FROM = 20
"""The number of points from which a curve gets a running mean; with fewer each gets a marker."""
_SPIKES_FROM = 8
"""The number of points from which a curve may have spikes."""
_REACH = 0.015
"""How far the running mean looks to either side, as a share of the curve."""
_SPIKE, _SHARE_OF_SPIKES = 2.0, 0.02
"""How far from the others, in multiples of their range, a spike lies at least; and the greatest
share of spikes among the values, which is one value at least."""

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Describes one line: `y` over `x` (increasing, of the same length), with a colour of the
    style. `smooth=False` draws the points themselves, however many there are."""

    x: ArrayLike
    y: ArrayLike
    color: str
    label: str | None = None
    smooth: bool = True
    linestyle: Any = "-"
    marker: str = "o"


def draw_curves(axes: Any, curves: Sequence[Curve]) -> None:
    """Draws the curves, and chooses the vertical limits that all of them need.

    A curve of 20 points or more is drawn pale, under its running mean; one of more than 1,000 as
    the band from the least to the greatest value of each group of neighbours. Spikes beyond the
    limits are marked by triangles at the edge, values that are not finite by crosses at the top.
    """
    drawn = [(curve, *_finite(axes, curve)) for curve in curves]
    drawn = [(curve, x, y) for curve, x, y in drawn if len(y)]
    for curve, x, y in drawn:
        _draw(axes, curve, x, y)
    if drawn:
        _set_limits(axes, drawn)


def running_mean(values: Numbers, reach: float) -> Numbers:
    """Gives the mean of each value's neighbours on both sides. A neighbour's weight falls by the
    factor e with each `reach` values of distance. A mean over the past alone would lag behind a
    falling loss. Near the start, where a loss falls fastest, both sides are equally long."""
    places = np.arange(len(values))
    distances = np.abs(places[:, None] - places)
    weights = np.exp(-distances / reach) * (distances <= places[:, None])
    return weights @ values / weights.sum(axis=1)


def thin(x: Numbers, y: Numbers, most: int = _MOST_POINTS) -> tuple[Numbers, ...]:
    """Divides a curve into at most `most` groups of neighbours; gives the last x of each group, and
    the mean, the least and the greatest y."""
    starts = np.unique(np.arange(min(most, len(y))) * len(y) // min(most, len(y)))
    counts = np.diff(starts, append=len(y))
    mean = np.add.reduceat(y, starts) / counts
    last = x[starts + counts - 1]
    return last, mean, np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts)


def view(values: Numbers) -> tuple[float, float]:
    """Gives the least and the greatest of the values without spikes. A spike lies further than
    twice the range of the running medians (of 9 values, or of 5 in a short curve) outside this
    range. Of many such values the most extreme ones are spikes."""
    if len(values) < _SPIKES_FROM:
        return values.min(), values.max()
    window = 9 if len(values) >= _SMOOTHED_FROM else 5
    windows = np.lib.stride_tricks.sliding_window_view(values, window)
    medians = np.median(windows[:: max(1, len(windows) // 10_000)], axis=-1)
    low, high = medians.min(), medians.max()
    outside = np.maximum(low - values, values - high)
    order = np.argsort(outside)
    most = max(1, int(_SHARE_OF_SPIKES * len(values)))
    is_spike = outside[order[-most:]] > _SPIKE * (high - low)
    # Where all medians are equal, values that differ from them are no spikes.
    shown = values if high == low else values[np.append(order[:-most], order[-most:][~is_spike])]
    return shown.min(), shown.max()


def _finite(axes: Any, curve: Curve) -> tuple[Numbers, Numbers]:
    """Gives the points whose values are finite, and marks the others."""
    x, y = np.asarray(curve.x, float), np.asarray(curve.y, float)
    finite = np.isfinite(y)
    if not finite.all():
        lost, *_ = thin(x[~finite], x[~finite])
        axes.plot(
            lost, [1.0] * len(lost), "x", color=curve.color, transform=axes.get_xaxis_transform(),
            clip_on=False, markersize=5, label=f"{curve.label or 'value'} not finite",
        )  # fmt: skip
    return x[finite], y[finite]


def _draw(axes: Any, curve: Curve, x: Numbers, y: Numbers) -> None:
    strong: dict[str, Any] = {"color": curve.color, "linestyle": curve.linestyle}
    if not curve.smooth or len(y) < _SMOOTHED_FROM:
        marker = {"marker": curve.marker, "markersize": 4.5} if len(y) <= 100 else {}
        axes.plot(x, y, label=curve.label, **strong, **marker)
        return
    last, mean, low, high = thin(x, y)
    if len(last) < len(y):
        axes.fill_between(last, low, high, color=pale(curve.color), linewidth=0)
    else:
        axes.plot(x, y, color=pale(curve.color), linewidth=0.8, linestyle="-")
    smooth = running_mean(mean, max(3.0, _REACH * len(mean)))
    axes.plot(last, smooth, label=curve.label and f"{curve.label}, running mean", **strong)


def _set_limits(axes: Any, drawn: Sequence[tuple[Curve, Numbers, Numbers]]) -> None:
    views = [view(y) for _, _, y in drawn]
    low, high = min(v[0] for v in views), max(v[1] for v in views)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.05
    # What is always 0, such as a share, is shown at the bottom.
    axes.set_ylim(low - margin, high + margin if low or high else 1.0)
    for curve, x, y in drawn:
        for beyond, edge, marker in ((y > high, 1.0, "^"), (y < low, 0.0, "v")):
            if beyond.any():
                _mark_spikes(axes, curve.color, x[beyond], y[beyond], edge, marker)


def _mark_spikes(axes: Any, color: str, x: Numbers, y: Numbers, edge: float, marker: str) -> None:
    """Marks the spikes at the edge beyond which they are, and writes the most extreme value."""
    places = thin(x, y)[0]
    axes.plot(
        places, [edge] * len(places), linestyle="none", marker=marker, markersize=5, color=color,
        transform=axes.get_xaxis_transform(), clip_on=False,
    )  # fmt: skip
    extreme = int(y.argmax() if marker == "^" else y.argmin())
    is_left = x[extreme] < sum(axes.get_xlim()) / 2
    axes.annotate(
        format_number(float(f"{y[extreme]:.3g}")), (x[extreme], edge), color=color, fontsize=8,
        xycoords=axes.get_xaxis_transform(), xytext=(6 if is_left else -6, 3 - 6 * edge),
        textcoords="offset points", ha="left" if is_left else "right",
        va="top" if edge else "bottom", bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1},
    )  # fmt: skip

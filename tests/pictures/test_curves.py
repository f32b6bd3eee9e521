"""Curves stay readable and right, whatever their numbers are."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minimind.pictures.curves import Curve, draw_curves, running_mean, thin, view
from minimind.pictures.style import COLORS, picture


def drawn(path: Path, *curves: Curve) -> Any:
    """The axes, after the picture is written."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with picture(path, 5, 3) as figure:
            axes = figure.add_subplot()
            draw_curves(axes, curves)
    assert path.read_bytes().startswith(b"\x89PNG")
    return axes


def curve(y: Any, x: Any = None, **more: Any) -> Curve:
    return Curve(x=np.arange(len(y)) if x is None else x, y=y, color=COLORS[0], **more)


@pytest.mark.parametrize(("length", "most"), [(1, 5), (5, 5), (6, 5), (999, 7), (10_000, 1000)])
def test_thinning_keeps_the_extremes_and_the_mean(length: int, most: int) -> None:
    y = np.random.default_rng(length).normal(size=length)
    x = np.arange(length) * 3.0
    last, mean, low, high = thin(x, y, most)
    assert len(last) == len(mean) == len(low) == len(high) == min(length, most)
    assert (low.min(), high.max(), last[-1]) == (y.min(), y.max(), x[-1])
    counts = np.diff(last / 3, prepend=-1)
    assert counts.max() - counts.min() <= 1
    assert np.sum(mean * counts) == pytest.approx(np.sum(y))
    assert (low <= mean + 1e-12).all()
    assert (mean <= high + 1e-12).all()


def test_the_running_mean_weighs_neighbours_by_distance() -> None:
    y = np.random.default_rng(0).normal(size=40)
    for place, mean in enumerate(running_mean(y, 4.0)):
        near = range(min(40, 2 * place + 1))
        weights = [math.exp(-abs(place - other) / 4) if other in near else 0 for other in range(40)]
        assert mean == pytest.approx(np.average(y, weights=weights))
    assert running_mean(np.full(30, 7.0), 10) == pytest.approx(np.full(30, 7.0))
    line = np.arange(400.0)
    assert running_mean(line, 5)[:300] == pytest.approx(line[:300]), "it does not lag"


def test_the_view_leaves_spikes_out_and_nothing_else() -> None:
    fall = np.linspace(9, 2, 200)
    assert view(fall) == (2, 9)
    for place in (0, 57, 199):
        spiky = fall.copy()
        spiky[place] = 400
        assert view(spiky)[1] <= 9
    noise = fall + np.random.default_rng(0).normal(size=200)
    assert view(noise) == (noise.min(), noise.max())
    many = fall.copy()
    many[::10] = 400  # too many to be exceptions
    assert view(many)[1] == 400
    rare = np.zeros(200)
    rare[50] = 1  # a share that is 0 but once
    assert view(rare) == (0, 1)
    assert view(np.array([1.0, 50.0])) == (1, 50)


def test_a_spike_is_marked_at_its_step(tmp_path: Path) -> None:
    y = np.linspace(9, 2, 200)
    y[57], y[60] = 400, -300
    axes = drawn(tmp_path / "a.png", curve(y))
    assert axes.get_ylim()[1] < 10
    assert axes.get_ylim()[0] > 1
    marks = {line.get_marker(): line.get_xdata().tolist() for line in axes.lines}
    assert (marks["^"], marks["v"]) == ([57], [60])
    assert {text.get_text() for text in axes.texts} == {"400", "−300"}


def test_a_slow_first_step_does_not_hide_the_others(tmp_path: Path) -> None:
    axes = drawn(tmp_path / "a.png", curve([38.4, *np.linspace(0.2, 0.4, 11)]))
    assert axes.get_ylim()[1] < 1
    assert [text.get_text() for text in axes.texts] == ["38.4"]


def test_values_that_are_no_numbers_are_marked(tmp_path: Path) -> None:
    y = [3.0, math.nan, 2.0, math.inf, 1.0]
    axes = drawn(tmp_path / "a.png", curve(y, label="loss"))
    crosses, line = axes.lines
    assert crosses.get_xdata().tolist() == [1, 3]
    assert crosses.get_label() == "loss not finite"
    assert line.get_ydata().tolist() == [3, 2, 1]
    assert len(drawn(tmp_path / "b.png", curve([math.nan])).lines) == 1


@pytest.mark.parametrize("length", [0, 1, 2, 19, 20, 21])
@pytest.mark.parametrize("value", [0.0, 3.0, -1e-30, 1e30])
def test_few_and_equal_points(tmp_path: Path, length: int, value: float) -> None:
    axes = drawn(tmp_path / "a.png", curve([value] * length))
    if length:
        low, high = axes.get_ylim()
        assert low < value < high
        assert length > 19 or axes.lines[-1].get_marker() == "o", "one point is seen"


def test_a_million_rows_are_a_thousand_points_and_hide_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = 2 + 7 * np.exp(-np.arange(1_000_000) / 1e5) + rng.normal(scale=0.2, size=1_000_000)
    y[123_456], y[500_000] = 1e4, math.nan
    axes = drawn(tmp_path / "a.png", curve(y, x=np.arange(1, 1_000_001), label="loss"))
    assert all(len(line.get_xdata()) <= 1000 for line in axes.lines)
    marks = {line.get_marker(): line.get_xdata().tolist() for line in axes.lines}
    assert marks["^"] == [123_457]
    assert marks["x"] == [500_001]
    (mean,) = (line for line in axes.lines if line.get_label() == "loss, running mean")
    assert mean.get_ydata()[-1] == pytest.approx(2, abs=0.05)
    (band,) = axes.collections
    assert band.get_paths()[0].vertices[:, 1].max() == 1e4


def test_every_curve_is_in_view(tmp_path: Path) -> None:
    axes = drawn(
        tmp_path / "a.png",
        curve(np.linspace(9, 2, 100)),
        curve([20.0, 15.0], x=[50, 100], smooth=False),
    )
    low, high = axes.get_ylim()
    assert low < 2
    assert high > 20

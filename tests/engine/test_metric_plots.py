"""loss.png and metrics.png: the columns of metrics.csv, in units that people read."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from minimind.engine import metric_plots
from minimind.engine.metric_plots import plot_columns, plot_losses

Rows = list[dict[str, str]]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures drawn, in their order."""
    found: list[Any] = []
    draw = metric_plots.picture

    def picture(*args: Any) -> Any:
        block = draw(*args)

        class Kept:
            def __enter__(self) -> Any:
                found.append(block.__enter__())
                return found[-1]

            def __exit__(self, *error: Any) -> Any:
                return block.__exit__(*error)

        return Kept()

    monkeypatch.setattr(metric_plots, "picture", picture)
    return found


def rows(losses: list[str], **more: list[str]) -> Rows:
    return [
        {"step": str(step), "loss": loss, **{k: v[step - 1] for k, v in more.items()}}
        for step, loss in enumerate(losses, start=1)
    ]


@pytest.mark.parametrize(
    "losses",
    [[], ["3.5"], [""], ["", "2"], ["inf", "2", "nan"], [str(9 - i / 9) for i in range(61)]],
)
def test_losses_of_any_number(tmp_path: Path, losses: list[str], figures: list[Any]) -> None:
    some = rows(losses, val_loss=["2.5" if i % 20 == 0 else "" for i in range(len(losses))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_losses(some, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    (axes,) = figures[0].axes
    named = {line.get_label(): line for line in axes.lines}
    if losses:
        validation = named["validation loss"]
        assert validation.get_xdata().tolist() == list(range(1, len(losses) + 1, 20))
        assert validation.get_marker() == "o"


def test_a_column_has_its_unit(tmp_path: Path, figures: list[Any]) -> None:
    some = rows(
        ["1", "2", "3"],
        peak_bytes=["", "2500000", "3500000"],
        tokens_per_s=["1000.5", "2000", "3000"],
        time_rollout_s=["1", "1", "1"],
        reward_礼貌=["", "", "0.5"],
        kl=["", "", ""],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_columns(some, list(some[0])[2:], tmp_path / "metrics.png")
    titles = {axes.get_title("left") for axes in figures[0].axes}
    assert {"peak memory (MB)", "tokens/s", "time rollout (s)"} <= titles
    assert len(titles) == 4, "an empty column is left out, one with a single value is not"
    (memory,) = (axes for axes in figures[0].axes if "memory" in axes.get_title("left"))
    assert memory.lines[0].get_xdata().tolist() == [2, 3]
    assert memory.lines[0].get_ydata() == pytest.approx([2.5, 3.5])


def test_nothing_to_show(tmp_path: Path) -> None:
    plot_columns(rows(["1"], kl=[""]), ["kl", "missing"], tmp_path / "metrics.png")
    assert list(tmp_path.iterdir()) == []

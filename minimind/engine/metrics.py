"""What a run writes down: metrics.csv, its plots, and the monitors that the JSON or recipe ask."""

from __future__ import annotations

import csv
import logging
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from minimind.engine.expert_load import ExpertLoadLog
from minimind.engine.metric_plots import plot_columns, plot_losses
from minimind.types import StepStats

logger = logging.getLogger(__name__)

COLUMNS = (
    "step",
    "loss",
    "val_loss",
    "learning_rate",
    "grad_norm",
    "tokens",
    "tokens_per_s",
    "peak_bytes",
    "resident_bytes",
)
_REDRAWN_AFTER_S = 15.0
"""A plot takes as long as some steps of a small model."""


class Monitor(Protocol):
    """Takes numbers by name and step, as DeepSpeed's monitors do."""

    def write_events(self, events: Sequence[tuple[str, float, int]]) -> None: ...


class MetricsLog:
    """Rank 0's record of a run. Rows wait one evaluation at most before they are on disk."""

    def __init__(
        self, folder: Path, extra_columns: Sequence[str], monitors: Sequence[Monitor], step: int
    ) -> None:
        """Keeps the rows up to `step` of an earlier part of the run and drops those after it,
        which the resumed run will make again."""
        self.folder = folder
        self.columns = [*COLUMNS, *extra_columns]
        self._path = folder / "metrics.csv"
        self._monitors = monitors
        self._drawn_at = time.monotonic()
        self._expert_load = ExpertLoadLog(folder, step)
        kept = [row for row in read_metrics(self._path) if int(row["step"]) <= step]
        fresh = self._path.with_suffix(".csv.new")
        with open(fresh, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, restval="", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(kept)
        os.replace(fresh, self._path)
        self._file = open(self._path, "a", newline="", encoding="utf-8")  # noqa: SIM115
        self._writer = csv.DictWriter(self._file, self.columns, restval="")

    def write(self, stats: StepStats, val_loss: float | None) -> None:
        row: dict[str, Any] = {
            "step": stats.step,
            "loss": f"{stats.loss:.6f}",
            "learning_rate": f"{stats.learning_rate:.6g}",
            "grad_norm": f"{stats.grad_norm:.6g}",
            "tokens": stats.tokens,
            "tokens_per_s": f"{stats.tokens_per_s:.1f}",
            "peak_bytes": stats.peak_bytes or "",
            "resident_bytes": stats.resident_bytes,
        }
        # A number that this step cannot say, such as a mean over nothing, is left out.
        extra = {
            name: value
            for name, value in (*stats.metrics.items(), *stats.diagnostics.items())
            if not math.isnan(value)
        }
        row |= {name: f"{value:.6g}" for name, value in extra.items()}
        numbers = {
            "loss": stats.loss,
            "learning_rate": stats.learning_rate,
            "grad_norm": stats.grad_norm,
            "tokens_per_s": stats.tokens_per_s,
            **extra,
        }
        if val_loss is not None:
            row["val_loss"] = f"{val_loss:.6f}"
            numbers["val_loss"] = val_loss
        self._writer.writerow(row)
        self._file.flush()
        self._expert_load.write(stats.step, stats.expert_load)
        events = [(f"train/{name}", value, stats.step) for name, value in numbers.items()]
        for monitor in self._monitors:
            monitor.write_events(events)

    def plot(self, or_later: bool = False) -> None:
        """Draws loss.png, metrics.png where the stage has columns of its own, and with experts
        expert_load.png; a plot that fails is logged and ends no run. With `or_later` those that
        are new enough stay for now."""
        now = time.monotonic()
        if or_later and now - self._drawn_at < _REDRAWN_AFTER_S:
            return
        self._drawn_at = now
        try:
            rows = read_metrics(self._path)
            plot_losses(rows, self.folder / "loss.png")
            plot_columns(rows, self.columns[len(COLUMNS) :], self.folder / "metrics.png")
            self._expert_load.plot()
        except Exception as error:
            logger.warning("loss.png, metrics.png or expert_load.png was not drawn: %s", error)

    def close(self) -> None:
        self.plot()
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, str]]:
    """The rows of a metrics.csv, without one cut off by a kill; none where there is no file."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if (row.get("resident_bytes") or "").isdigit()]


class SwanLabMonitor:
    """Writes to SwanLab, where the recipe asks for it."""

    def __init__(self, project: str, run: str, config: dict[str, Any]) -> None:
        try:
            import swanlab  # type: ignore[import-not-found]
        except ImportError as error:
            from minimind.errors import ConfigError

            raise ConfigError("swanlab=true needs it installed: pip install swanlab") from error
        self._swanlab = swanlab
        swanlab.init(project=project, experiment_name=run, config=config, resume="allow")

    def write_events(self, events: Sequence[tuple[str, float, int]]) -> None:
        step = events[0][2]
        self._swanlab.log({name: value for name, value, _ in events}, step=step)

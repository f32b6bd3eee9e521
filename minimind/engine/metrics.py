"""Records a run's metrics in metrics.csv, plots them, and passes them on to the monitors."""

from __future__ import annotations

import csv
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path

from minimind.engine.expert_load import ExpertLoadLog
from minimind.engine.metric_plots import plot_columns, plot_losses
from minimind.monitors.background import Monitors
from minimind.monitors.monitor import Figures, Outcome
from minimind.runtime.whole_files import write_whole
from minimind.types import StepStats

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.csv"
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
_FORMATS = {
    "loss": ".6f",
    "val_loss": ".6f",
    "tokens": "d",
    "tokens_per_s": ".1f",
    "peak_bytes": "d",
    "resident_bytes": "d",
}
"""The number formats of columns; all others have six digits."""
_OTHER_COLUMNS = ("step", "loss", "val_loss", "tokens")
"""The columns that metrics.png does not show: the losses are in loss.png, and the other two only
count up."""
_REDRAWN_AFTER_S, _REDRAWN_AFTER_TIMES = 15.0, 20
"""The plots are drawn again no sooner than so many seconds after the last drawing, since drawing
takes as long as several steps of a small model; and no sooner than so many times the last drawing's
duration, which grows with the number of rows."""


class MetricsLog:
    """Records a run's metrics, on rank 0. Rows reach the disk at the next evaluation at the
    latest."""

    def __init__(
        self, folder: Path, extra_columns: Sequence[str], monitors: Monitors, step: int
    ) -> None:
        """Keeps the rows of an earlier part of the run up to `step`, and drops later ones: the
        resumed run makes those steps again."""
        self.folder = folder
        self.columns = [*COLUMNS, *extra_columns]
        self.monitors = monitors
        self._path = folder / METRICS_FILE
        self._redrawn_at = time.monotonic() + _REDRAWN_AFTER_S
        self._expert_load = ExpertLoadLog(folder, step)
        kept = [row for row in read_metrics(self._path) if int(row["step"]) <= step]
        with write_whole(self._path) as new, open(new, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, restval="", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(kept)
        self._file = open(self._path, "a", newline="", encoding="utf-8")  # noqa: SIM115
        self._writer = csv.DictWriter(self._file, self.columns, restval="")

    def write(self, stats: StepStats, val_loss: float | None) -> None:
        figures: dict[str, float] = {
            "learning_rate": stats.learning_rate,
            "grad_norm": stats.grad_norm,
            "tokens": stats.tokens,
            "tokens_per_s": stats.tokens_per_s,
            "resident_bytes": stats.resident_bytes,
        }
        if stats.peak_bytes:
            figures["peak_bytes"] = stats.peak_bytes
        if val_loss is not None:
            figures["val_loss"] = val_loss
        # A value that this step does not have, such as a mean over nothing, is left out: a 0 would
        # pull down the mean over several steps.
        more = (("loss", stats.loss), *stats.metrics.items(), *stats.diagnostics.items())
        figures |= {name: value for name, value in more if not math.isnan(value)}
        row = {name: format(value, _FORMATS.get(name, ".6g")) for name, value in figures.items()}
        self._writer.writerow({"step": stats.step, **row})
        self._file.flush()
        self._expert_load.write(stats.step, stats.expert_load)
        self.monitors.write(stats.step, read_figures(row))

    def plot(self, or_later: bool = False) -> None:
        """Draws loss.png, metrics.png (rates, speed, memory and the stage's own columns) and, if
        the model has experts, expert_load.png. A failed plot is logged and does not end the run.
        With `or_later`, recent plots are not redrawn yet."""
        start = time.monotonic()
        if or_later and start < self._redrawn_at:
            return
        try:
            rows = read_metrics(self._path)
            plot_losses(rows, self.folder / "loss.png")
            shown = [name for name in self.columns if name not in _OTHER_COLUMNS]
            plot_columns(rows, shown, self.folder / "metrics.png")
            self._expert_load.plot()
        except Exception as error:
            logger.warning("loss.png, metrics.png or expert_load.png was not drawn: %s", error)
        end = time.monotonic()
        self._redrawn_at = end + max(_REDRAWN_AFTER_S, _REDRAWN_AFTER_TIMES * (end - start))

    def close(self, outcome: Outcome) -> None:
        self.plot()
        self._file.close()
        self.monitors.close(outcome)


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Reads the rows of a metrics.csv, without a last row that a killed process left incomplete;
    empty where there is no file."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if (row.get("resident_bytes") or "").isdigit()]


def read_figures(row: dict[str, str]) -> Figures:
    """Gives the numbers in a row of metrics.csv by column, without its step."""
    return {name: float(text) for name, text in row.items() if name != "step" and text}

"""Writes each figure of a run to a separate CSV file, in the layout of DeepSpeed's csv_monitor."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minimind.monitors.monitor import Figures, MonitoredRun, Outcome, logs_folder
from minimind.runtime.whole_files import write_whole


class CsvMonitor:
    """Writes train_loss.csv and one such file for each other figure. A resumed run appends to these
    files, after dropping their rows later than the step it resumes from."""

    def __init__(self, run: MonitoredRun, section: Mapping[str, Any]) -> None:
        self._folder = logs_folder(run.folder, section, "csv_monitor")
        self._folder.mkdir(parents=True, exist_ok=True)
        written = self._folder.glob("train_*.csv")
        self.holds = max((_cut(path, run.step) for path in written), default=0)

    def write(self, step: int, figures: Figures) -> None:
        for name, value in figures.items():
            path = self._folder / f"train_{name}.csv"
            is_new = not path.exists()
            with open(path, "a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([["step", name]] * is_new + [[step, value]])

    def write_texts(self, step: int, texts: Sequence[str]) -> None:
        """Does nothing: a CSV of numbers holds no texts. samples.jsonl and the console have
        them."""

    def close(self, outcome: Outcome) -> None:
        """Does nothing: each row is on disk already."""


def _cut(path: Path, step: int) -> int:
    """Drops the rows after `step`, and a last line that is incomplete because the process was
    killed. Gives the step of the last row that is left, or 0."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    kept = [row for row in rows if len(row) == 2 and int(row[0]) <= step]
    with write_whole(path) as new, open(new, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["step", path.stem.removeprefix("train_")], *kept])
    return max((int(row[0]) for row in kept), default=0)

"""Defines the interface of a monitor, and what a monitor is told about its run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from minimind.errors import ConfigError
from minimind.runtime.whole_files import write_whole

Figures = Mapping[str, float]
"""The numbers of a step, by their column in metrics.csv."""
IDS_FILE = "monitors.json"
_WITHOUT_IDS = "without that file each monitor begins a new run"


class Outcome(NamedTuple):
    """Says how a run ended: the exit status of its process, and the error where it failed."""

    status: int
    error: str = ""


DONE = Outcome(0)
INTERRUPTED = Outcome(130)


@dataclass(frozen=True, slots=True)
class MonitoredRun:
    """Describes a run to its monitors."""

    folder: Path
    config: Mapping[str, Any]
    """All of run.json."""
    resumed: bool
    step: int
    """The step that this part of the run starts after. Figures recorded for later steps are void:
    the steps run again."""
    reached: int
    """The last step in the metrics.csv of the run's earlier part."""
    earlier: Sequence[tuple[int, Figures]]
    """metrics.csv up to `step`."""

    @property
    def name(self) -> str:
        """Gives the name of the run's folder."""
        return self.folder.resolve().name

    def find_id(self, monitor: str) -> str | None:
        """Gives the id by which the monitor's service knows the earlier part of this run, or None
        for a new run."""
        return self._read_ids().get(monitor) if self.resumed else None

    def keep_id(self, monitor: str, name: str) -> str:
        """Stores the id that a monitor's service gave this run, for a resumed part to find, and
        returns it."""
        ids = self._read_ids() | {monitor: name}
        with write_whole(self.folder / IDS_FILE) as new:
            new.write_text(json.dumps(ids, indent=2) + "\n", encoding="utf-8")
        return name

    def _read_ids(self) -> dict[str, str]:
        """Reads the ids. Raises ConfigError where the file holds none."""
        path = self.folder / IDS_FILE
        try:
            ids = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read: {error}; {_WITHOUT_IDS}") from None
        if not isinstance(ids, dict) or not all(isinstance(id, str) for id in ids.values()):
            raise ConfigError(f"{path} holds no ids by the name of a monitor; {_WITHOUT_IDS}")
        return ids


class Monitor(Protocol):
    """Shows a run's figures. An error of an opened monitor is logged and ends nothing."""

    holds: int
    """The last step of an earlier part whose figures the monitor already holds and keeps; only
    later ones are written."""

    def write(self, step: int, figures: Figures) -> None: ...

    def write_texts(self, step: int, texts: Sequence[str]) -> None:
        """Shows texts that the model generated after `step` steps, where the monitor can show
        texts."""
        ...

    def close(self, outcome: Outcome) -> None:
        """Returns when everything is written."""
        ...


def tagged(figures: Figures) -> dict[str, float]:
    """Gives the figures under the names that they have in every monitor."""
    return {f"train/{name}": value for name, value in figures.items()}


def logs_folder(folder: Path, section: Mapping[str, Any], default: str) -> Path:
    """Gives the folder output_path/job_name inside a run's folder. An absolute output_path may be
    shared by several runs, so without a job_name each run's own name is appended."""
    output_path = Path(section.get("output_path") or default).expanduser()
    name = folder.resolve().name if output_path.is_absolute() else ""
    return folder / output_path / (section.get("job_name") or name)


def set_aside(folder: Path, pattern: str) -> None:
    """Adds .replaced to the names of the files that earlier parts of the run wrote: the next part
    writes all their figures again, and no viewer shall read both."""
    for path in folder.glob(pattern):
        path.replace(path.with_name(f"{path.name}.replaced"))

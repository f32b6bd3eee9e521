"""Writes a run's figures to SwanLab: online, or with SWANLAB_MODE=offline into the run's folder."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from minimind.monitors.monitor import (
    DONE,
    INTERRUPTED,
    Figures,
    MonitoredRun,
    Outcome,
    set_aside,
    tagged,
)

_STATES: dict[int, Literal["success", "aborted", "crashed"]] = {
    DONE.status: "success",
    INTERRUPTED.status: "aborted",
}


class SwanLabMonitor:
    """Writes one SwanLab experiment, named after the run's folder. A resumed run continues the same
    experiment: online, SwanLab ignores the steps it already has; offline, the resumed part's files
    hold the whole run."""

    def __init__(self, run: MonitoredRun, section: Mapping[str, Any]) -> None:
        import swanlab  # type: ignore[import-not-found]

        self._swanlab = swanlab
        self.holds = 0
        folder = run.folder / "swanlog"
        known = run.find_id("swanlab")
        if known:
            set_aside(folder, f"run-*/run-{known}.swanlab")
        self._run = swanlab.init(
            project=section.get("project") or os.environ.get("SWANLAB_PROJ_NAME", "minimind"),
            workspace=section.get("workspace"),
            group=section.get("group"),
            name=run.name,
            id=known or run.keep_id("swanlab", secrets.token_hex(8)),
            resume="allow",
            log_dir=str(folder),
            config=dict(run.config),
        )

    def write(self, step: int, figures: Figures) -> None:
        self._run.log(tagged(figures), step=step)

    def write_texts(self, step: int, texts: Sequence[str]) -> None:
        self._run.log({"samples": [self._swanlab.Text(text) for text in texts]}, step=step)

    def close(self, outcome: Outcome) -> None:
        self._run.finish(state=_STATES.get(outcome.status, "crashed"), error=outcome.error or None)

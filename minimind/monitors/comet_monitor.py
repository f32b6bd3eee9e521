"""Writes a run's figures to Comet: online, or with online=false into an archive in the run's
folder."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from minimind.monitors.monitor import DONE, Figures, MonitoredRun, Outcome, set_aside, tagged


class CometMonitor:
    """Writes one Comet experiment, named after the run's folder. A resumed run continues the same
    experiment. Online it skips the steps that Comet already has, since Comet would keep two values
    for each. Offline the resumed part's archive holds the whole run."""

    def __init__(self, run: MonitoredRun, section: Mapping[str, Any]) -> None:
        import comet_ml  # type: ignore[import-not-found]

        is_online = section.get("online") is not False
        known = run.find_id("comet")
        given = section.get("experiment_key")
        self.holds = run.reached if known and is_online else 0
        folder = run.folder / "comet"
        if known and not is_online:
            set_aside(folder, f"{known}*.zip")
        self._experiment = comet_ml.start(
            workspace=section.get("workspace"),
            project_name=section.get("project") or "minimind",
            experiment_key=known or run.keep_id("comet", given or secrets.token_hex(16)),
            online=is_online,
            experiment_config=comet_ml.ExperimentConfig(
                name=section.get("experiment_name") or run.name,
                offline_directory=str(folder),
                display_summary_level=0,
                auto_metric_logging=False,  # it would take TensorBoard's too
            ),
        )
        self._experiment.log_parameters(dict(run.config))

    def write(self, step: int, figures: Figures) -> None:
        self._experiment.log_metrics(tagged(figures), step=step)

    def write_texts(self, step: int, texts: Sequence[str]) -> None:
        for text in texts:
            self._experiment.log_text(text, step=step)

    def close(self, outcome: Outcome) -> None:
        if outcome != DONE:
            self._experiment.log_other("exit status", outcome.status)
        self._experiment.end()

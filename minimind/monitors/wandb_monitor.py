"""Writes a run's figures to Weights & Biases: online, or with WANDB_MODE=offline into the run's
folder."""

from __future__ import annotations

import html
import os
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from minimind.monitors.monitor import Figures, MonitoredRun, Outcome, set_aside, tagged

_FINISH_S = 300
"""The seconds after which an upload without a network is given up; W&B itself would wait for
ever."""


class WandbMonitor:
    """Writes one W&B run, named after the run's folder. A resumed run continues the same W&B run:
    online, W&B refuses the steps that it already has; offline, the resumed part's files hold the
    whole run."""

    def __init__(self, run: MonitoredRun, section: Mapping[str, Any]) -> None:
        import wandb  # type: ignore[import-not-found]

        self._wandb = wandb
        is_offline = wandb.setup().settings.mode in ("offline", "dryrun")
        known = run.find_id("wandb")
        given = os.environ.get("WANDB_RUN_ID")
        if known and is_offline:
            set_aside(run.folder / "wandb", f"offline-run-*/run-{known}.wandb")
        self._run = wandb.init(
            project=section.get("project") or os.environ.get("WANDB_PROJECT", "minimind"),
            entity=section.get("team"),
            group=section.get("group"),
            name=os.environ.get("WANDB_NAME", run.name),
            id=known or run.keep_id("wandb", given or secrets.token_hex(4)),
            resume="allow" if known and not is_offline else None,
            dir=str(run.folder),
            config=dict(run.config),
            reinit="create_new",
            settings=wandb.Settings(finish_timeout=_FINISH_S),
        )
        self.holds = max(self._run.starting_step - 1, 0)

    def write(self, step: int, figures: Figures) -> None:
        self._run.log(tagged(figures), step=step)

    def write_texts(self, step: int, texts: Sequence[str]) -> None:
        shown = [self._wandb.Html(f"<pre>{html.escape(text)}</pre>") for text in texts]
        self._run.log({"samples": shown}, step=step)

    def close(self, outcome: Outcome) -> None:
        self._run.finish(exit_code=outcome.status)

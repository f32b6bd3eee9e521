"""Writes a run's figures to TensorBoard event files, in the run's folder unless output_path names
another."""

from __future__ import annotations

import json
import textwrap
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minimind.monitors.monitor import Figures, MonitoredRun, Outcome, logs_folder, tagged


class TensorBoardMonitor:
    """Writes scalars and texts. A resumed run writes to the same folder, and TensorBoard discards
    what the earlier part wrote after the step that the run resumes from."""

    def __init__(self, run: MonitoredRun, section: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = logs_folder(run.folder, section, "tensorboard")
        self.holds = min(run.step, _find_last_step(folder))
        self._writer = SummaryWriter(str(folder), purge_step=self.holds + 1)
        config = json.dumps(run.config, indent=2, ensure_ascii=False)
        self._writer.add_text("run.json", _as_code(config), self.holds)

    def write(self, step: int, figures: Figures) -> None:
        for name, value in tagged(figures).items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def write_texts(self, step: int, texts: Sequence[str]) -> None:
        self._writer.add_text("samples", "\n\n---\n\n".join(map(_as_code, texts)), step)

    def close(self, outcome: Outcome) -> None:
        self._writer.close()


def _find_last_step(folder: Path) -> int:
    """Reads the step of the last event in a folder's newest file; 0 where there is none."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[attr-defined]

    for path in sorted(folder.glob("events.out.tfevents.*"), reverse=True):
        last = deque(RawEventFileLoader(str(path)).Load(), maxlen=1)
        if last and (step := Event.FromString(last[0]).step):
            return step
    return 0


def _as_code(text: str) -> str:
    """Formats the text as a Markdown code block by indenting it, so that even code fences inside it
    show as they are."""
    return textwrap.indent(text, "    ", lambda line: True)

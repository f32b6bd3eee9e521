"""Runs one rank of a training that stops after a step, and records which documents it reads.

The arguments are the file to append to, the step to stop after (0: none), and those of `minimind
train`.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

from minimind.cli.train import run_process
from minimind.engine.loop import Loop


def record_documents(path: Path, stop_after: int) -> None:
    """Makes every loop of this process write a line for each step that it takes, and interrupts it
    after step `stop_after`."""
    take = Loop.step

    def step(self: Loop[Any, Any], micro_batches: list[Any]) -> None:
        number = self.state.step
        take(self, micro_batches)
        if self.state.step == number:
            return  # the loop was interrupted before this step
        read = [d for i in range(len(micro_batches)) for d in self.loader.describe(number, i)]
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": number + 1, "documents": read}) + "\n")
        if self.state.step == stop_after:
            signal.raise_signal(signal.SIGINT)

    Loop.step = step  # type: ignore[method-assign]


if __name__ == "__main__":
    record_documents(Path(sys.argv[1]), int(sys.argv[2]))
    run_process(sys.argv[3:])

"""Trains on two ranks, in two processes that stay, since starting them takes longer than a run."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from training_runs import WITHOUT_CLIPPING, Train, assert_same_run

from minimind.runtime.ranks import free_port

_RANKS = 2
_TIMEOUT_S = 300
_WORKER = Path(__file__).with_name("rank_worker.py")

TrainOnTwo = Callable[..., str]
"""Calls launch/train.py's main with flags on both ranks (RankPair.train)."""


class RankPair:
    """Holds the two processes, started with the first run, and again after a run that hung."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[str]] = []
        self._answers: list[queue.Queue[str]] = []

    def train(self, *arguments: str, prelude: str = "", status: int = 0) -> str:
        """Trains on both ranks, and gives what both say; `prelude` is Python code that each runs
        before. Checks the exit status, which is the greater one of the two."""
        if not self._processes:
            self._start()
        settings = {k: v for k, v in os.environ.items() if k.startswith("MINIMIND_")}
        asked = json.dumps({"arguments": arguments, "environment": settings, "prelude": prelude})
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(asked + "\n")
            process.stdin.flush()
        try:
            found: list[dict[str, Any]] = [
                json.loads(answers.get(timeout=_TIMEOUT_S)) for answers in self._answers
            ]
        except (queue.Empty, ValueError):
            self.stop()
            raise AssertionError(f"a rank died or hung: {arguments}") from None
        said = "".join(one["said"] for one in found)
        assert max(one["status"] for one in found) == status, said
        return said

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        self._processes.clear()
        self._answers.clear()

    def _start(self) -> None:
        shared = {"WORLD_SIZE": str(_RANKS), "LOCAL_WORLD_SIZE": str(_RANKS)}
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        shared |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        for rank in map(str, range(_RANKS)):
            process = subprocess.Popen(
                [sys.executable, str(_WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank},
            )
            answers: queue.Queue[str] = queue.Queue()
            threading.Thread(target=_read, args=(process, answers), daemon=True).start()
            self._processes.append(process)
            self._answers.append(answers)


def check_other_files_and_two_ranks(
    train: Train, train_on_two: TrainOnTwo, flags: list[str], tmp_path: Path
) -> None:
    """Checks that runs with zero0, zero1 and zero3, and one on two ranks, take the same steps as a
    run with the default JSON in tmp_path/run."""
    flags = [*flags, *WITHOUT_CLIPPING]
    assert train(*flags) == 0
    for name in ("zero0", "zero1", "zero3"):
        other = tmp_path / name
        assert train(*flags, "--ds_config", f"{name}.json", "--output_dir", str(other)) == 0
        assert_same_run(tmp_path / "run", other)
    train_on_two(*flags, "--output_dir", str(tmp_path / "two"))
    assert_same_run(tmp_path / "run", tmp_path / "two")


def _read(process: subprocess.Popen[str], answers: queue.Queue[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        answers.put(line)
    answers.put("")  # no more to come

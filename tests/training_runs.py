"""Training runs for tests, and what they left on disk."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from minimind.lora.folder import find_model_folder, load_model_folder
from minimind.runtime.ranks import free_port

ROOT = Path(__file__).resolve().parents[1]
TRAIN = ROOT / "launch" / "train.py"

LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
Train = Callable[..., int]
"""launch/train.py's main, by flags, in this process."""


def train_in_a_process(
    *arguments: str, ranks: int = 1, prelude: str = ""
) -> subprocess.CompletedProcess[str]:
    """launch/train.py as a user starts it; `prelude` is Python that runs before it."""
    code = f"{prelude}\nimport sys, runpy\nsys.argv = sys.argv[1:]\n"
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, str(TRAIN), *arguments]
    if ranks > 1:
        # The launcher's own port may be another run's.
        port = ["--master_port", str(free_port())]
        command = [str(Path(sys.executable).parent / "deepspeed"), *port]
        command += ["--num_accelerators", str(ranks), str(TRAIN), *arguments]
    # Runs in this process may hold the port that they have set.
    environment = {k: v for k, v in os.environ.items() if k not in LAUNCHER_VARIABLES}
    environment |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment | {"PATH": path},
        check=False,
        timeout=300,
    )


KILL_AFTER = """
import os, signal
from minimind.engine import {module}
whole = {module}.{function}
calls = []
def dying(*arguments, **options):
    result = whole(*arguments, **options)
    calls.append(1)
    if len(calls) == {calls}:
        os.kill(os.getpid(), signal.SIGKILL)
    return result
{module}.{function} = dying
"""
"""A prelude that kills -9 the process after so many calls of a function."""

KILLED = -signal.SIGKILL


def read_losses(run: Path) -> list[tuple[int, float, str]]:
    """(step, loss, validation loss) of each row of metrics.csv."""
    with open(run / "metrics.csv", encoding="utf-8") as file:
        return [
            (int(row["step"]), float(row["loss"]), row["val_loss"]) for row in csv.DictReader(file)
        ]


def read_column(run: Path, name: str) -> list[float]:
    with open(run / "metrics.csv", encoding="utf-8") as file:
        return [float(row[name]) for row in csv.DictReader(file)]


WITHOUT_CLIPPING = ("--set", "gradient_clipping=0")
"""Flags of runs that are compared to the bit over ZeRO stages or ranks. Two micro-batches a step,
whose sum has no order, are added in fp32 in either precision; the norm that clipping divides by is
the one thing left that is rounded otherwise."""


def assert_same_run(left: Path, right: Path) -> None:
    """The same weights, losses and validation losses to the bit, as far as these are written."""
    assert_same_weights(left, right)
    assert read_losses(left) == read_losses(right)


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    return load_model_folder(find_model_folder(run / "checkpoints" / "latest"))[1]


def assert_like_losses(left: Path, right: Path, *, within: float) -> None:
    """The same steps, and so close in each."""
    for (step, loss, _), (other_step, other, _) in zip(
        read_losses(left), read_losses(right), strict=True
    ):
        assert step == other_step
        assert other == pytest.approx(loss, abs=within)


def assert_like_weights(left: Path, right: Path, *, atol: float = 2e-5, rtol: float = 2e-4) -> None:
    expected = final_weights(left)
    for name, weight in final_weights(right).items():
        torch.testing.assert_close(weight, expected[name], atol=atol, rtol=rtol)


def assert_same_weights(left: Path, right: Path) -> None:
    """Bitwise."""
    one, other = final_weights(left), final_weights(right)
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name

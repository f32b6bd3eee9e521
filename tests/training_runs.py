"""Runs trainings for tests, and reads what they leave on disk."""

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
"""Calls launch/train.py's main with flags, in this process."""


_DYING = """
import os, pkgutil, runpy, signal, sys
owner = pkgutil.resolve_name("{owner}")
whole = owner.{name}
calls = []
def dying(*arguments, **options):
    result = whole(*arguments, **options)
    calls.append(1)
    if len(calls) == {calls}:
        os.kill(os.getpid(), signal.SIGKILL)
    return result
owner.{name} = dying
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def train_until_killed(*arguments: str, after: str, calls: int) -> None:
    """Trains in a process that signal 9 ends after so many calls of a function, which is given by
    its full name."""
    owner, _, name = after.rpartition(".")
    code = _DYING.format(owner=owner, name=name, calls=calls)
    done = _run([sys.executable, "-c", code, str(TRAIN), *arguments])
    assert done.returncode == -signal.SIGKILL, done.stderr


def launch_on_two(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Trains on two ranks that DeepSpeed's launcher starts, as a user does."""
    # The launcher's own port may be another run's.
    port = ["--master_port", str(free_port())]
    command = [str(Path(sys.executable).parent / "deepspeed"), *port, "--num_accelerators", "2"]
    return _run([*command, str(TRAIN), *arguments])


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
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


def read_losses(run: Path) -> list[tuple[int, float, str]]:
    """Gives (step, loss, validation loss) from each row of metrics.csv; a step without a loss has
    NaN."""
    return [
        (int(row["step"]), float(row["loss"] or "nan"), row["val_loss"]) for row in read_rows(run)
    ]


def read_column(run: Path, name: str) -> list[float]:
    return [float(row[name]) for row in read_rows(run)]


def read_rows(run: Path) -> list[dict[str, str]]:
    with open(run / "metrics.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


WITHOUT_CLIPPING = ("--set", "gradient_clipping=0")
"""Flags for runs that must be bitwise equal over ZeRO stages or ranks: two micro-batches per step,
whose sum has no order, are added in fp32 in either precision; and there is no clipping, whose norm
is the only other value that is rounded differently."""


def assert_same_run(left: Path, right: Path) -> None:
    """Checks that two runs have bitwise equal weights, and equal losses and validation losses as
    far as these are written."""
    assert_same_weights(left, right)
    assert read_losses(left) == read_losses(right)


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    return load_model_folder(find_model_folder(run / "checkpoints" / "latest"))[1]


def assert_like_losses(left: Path, right: Path, *, within: float) -> None:
    """Checks that two runs have the same steps, with losses this close in each."""
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
    """Checks that weights are bitwise equal."""
    one, other = final_weights(left), final_weights(right)
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name

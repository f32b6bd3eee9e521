"""Starts a benchmark's ranks through DeepSpeed's launcher."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.program import MeasurementError
from bench.workers import kill_with_children
from minimind.errors import ConfigError
from minimind.runtime.devices import Device
from minimind.runtime.ranks import free_port

ROOT = Path(__file__).resolve().parents[1]


class LaunchError(MeasurementError):
    """Says that the ranks failed; the message holds the end of their output."""


def build_command(module: str, arguments: Sequence[str], num_ranks: int) -> list[str]:
    """Gives the command that runs a module on so many ranks of this machine."""
    launcher = str(Path(sys.executable).parent / "deepspeed")
    # No hostfile at all: the launcher would read /job/hostfile where a machine has one.
    flags = ["--hostfile", os.devnull, "--master_port", str(free_port())]
    return [launcher, *flags, "--num_gpus", str(num_ranks), "--module", module, *arguments]


def run_ranks(command: Sequence[str], device: Device, log: Path, *, threads: int) -> None:
    """Runs to the end with the output in `log`. Raises LaunchError, and ConfigError where the ranks
    refuse what they were given."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            env=_environment(device, threads),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait()
        except BaseException:
            kill_with_children(process)
            raise
    if status:
        said = log.read_text(encoding="utf-8", errors="replace")
        if refusal := re.search(r"^error: (.+)$", said, re.MULTILINE):
            raise ConfigError(refusal[1])
        raise LaunchError(f"the ranks ended with exit status {status}:\n{said[-3000:]}")


def _environment(device: Device, threads: int) -> Mapping[str, str]:
    search = os.pathsep.join([str(ROOT / "kernels"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    # DeepSpeed looks for ninja on the path.
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = os.environ | {"PYTHONPATH": search.rstrip(os.pathsep), "PATH": binaries}
    environment |= {"OMP_NUM_THREADS": str(threads)}
    return environment | ({"DS_ACCELERATOR": "cpu"} if device.kind == "cpu" else {})

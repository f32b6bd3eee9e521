"""Starting a benchmark's ranks through DeepSpeed's launcher, on this machine or on several."""

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
    """The ranks ended badly; the message holds the end of what they said."""


def read_hostfile(path: Path) -> dict[str, int]:
    """Slots of each host, from DeepSpeed's lines `name slots=N`. Raises ConfigError."""
    slots: dict[str, int] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"--hostfile {path}: cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        if not (text := line.split("#")[0].strip()):
            continue
        found = re.fullmatch(r"(\S+)\s+slots=([1-9]\d*)", text)
        if found is None:
            raise ConfigError(f"{path}:{number}: {text}: give `name slots=N`")
        slots[found[1]] = int(found[2])
    if not slots:
        raise ConfigError(f"--hostfile {path}: names no host")
    return slots


def build_command(
    module: str,
    arguments: Sequence[str],
    num_ranks: int,
    hostfile: Path | None = None,
    port: int | None = None,
) -> list[str]:
    """As few hosts of the hostfile as hold the ranks, as many ranks on each. Raises ConfigError."""
    command = [str(Path(sys.executable).parent / "deepspeed")]
    command += ["--master_port", str(port or free_port())]
    if hostfile:
        slots = list(read_hostfile(hostfile).values())
        hosts = next((n for n in range(1, len(slots) + 1) if sum(slots[:n]) >= num_ranks), 0)
        if not hosts or num_ranks % hosts or min(slots[:hosts]) < num_ranks // hosts:
            raise ConfigError(
                f"{num_ranks} ranks do not spread evenly over the hosts of {hostfile}, which have "
                f"{', '.join(map(str, slots))} slots"
            )
        command += ["--hostfile", str(hostfile), "--num_nodes", str(hosts)]
        num_ranks //= hosts
    else:
        # No file at all: the launcher would read /job/hostfile where a machine has one.
        command += ["--hostfile", os.devnull]
    command += ["--num_gpus", str(num_ranks)]
    return [*command, "--module", module, *arguments]


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

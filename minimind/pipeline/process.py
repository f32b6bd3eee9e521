"""Starts a step's command as a process of its own, passes on signals and waits for its end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import FrameType

from minimind.errors import ConfigError
from minimind.runtime.ranks import free_port, read_ranks

LAUNCHERS = ("python", "torchrun", "deepspeed")
_FOLLOW = (
    "import ctypes, os, signal, sys; "
    "ctypes.CDLL(None).prctl(1, signal.SIGTERM); "
    "os.getppid() == int(sys.argv[1]) or sys.exit(1); "
    "os.execv(sys.argv[2], sys.argv[2:])"
)
"""Becomes the command, after asking Linux for SIGTERM at the parent's end (PR_SET_PDEATHSIG is 1):
where the pipeline is killed, a training saves a checkpoint and ends too."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def build_command(verb: str, flags: Sequence[str], launcher: str, ranks: int) -> list[str]:
    """Gives the command that runs a verb, on several ranks by `launcher`."""
    module = ["minimind", verb, *flags]
    if launcher == "torchrun":
        start = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
        return [sys.executable, "-m", *start, "-m", *module]
    if launcher == "deepspeed":
        start = ["deepspeed.launcher.runner", "--master_port", str(free_port())]
        start += [*_devices(ranks), "--module"]
        return [sys.executable, "-m", *start, *module]
    return [sys.executable, "-m", *module]


def _devices(ranks: int) -> list[str]:
    """Gives the flags by which DeepSpeed's launcher takes the first `ranks` devices of those that
    CUDA_VISIBLE_DEVICES shows. Beside a number of devices it would ignore that variable."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[:ranks]
    if visible != [""]:
        return ["--include", f"localhost:{','.join(visible)}"]
    return ["--num_accelerators", str(ranks)]


def check_not_launched() -> None:
    """Raises ConfigError where a launcher has started the pipeline itself on several ranks."""
    if read_ranks().world_size > 1:
        raise ConfigError(
            "a pipeline starts its ranks itself: start it plainly, with --ranks N and --launcher"
        )


class Child:
    """Runs commands one at a time, each in its own process group, and passes on SIGINT and SIGTERM.
    So Ctrl-C reaches a training exactly once."""

    def __init__(self) -> None:
        self.interrupted = False
        """Whether a signal has come, now or before."""
        self._group: int | None = None

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> int:
        """Runs a command to its end, with more variables in its `environment`; gives its exit
        status, below 0 where a signal killed it. Raises OSError."""
        previous = {number: signal.signal(number, self._pass_on) for number in _SIGNALS}
        try:
            if self.interrupted:
                return 130
            process = subprocess.Popen(
                [sys.executable, "-c", _FOLLOW, str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                process_group=0,
                env={**os.environ, **environment},
            )
            self._group = process.pid
            if self.interrupted:  # before there was a group to pass the signal on to
                os.killpg(self._group, signal.SIGINT)
            return process.wait()
        finally:
            self._group = None
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True
        if self._group is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._group, number)

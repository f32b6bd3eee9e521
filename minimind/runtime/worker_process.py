"""Starts and ends a worker process."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from multiprocessing.connection import Connection

_CODE = (
    "import sys; sys.path[:] = {paths!r}; "
    "from minimind.runtime.function_worker import serve; "
    "serve({fd}, {parent}, {is_unpacked}, {most_s})"
)


class WorkerProcess:
    """Starts a Python process that serves calls over a socket, and ends it.

    The worker runs `python -c`. multiprocessing's "spawn" would import the parent's main module
    again, and so run a script without `if __name__ == "__main__"` once more in each worker; a fork
    is not allowed in a process with threads or a GPU. The worker has the parent's sys.path, working
    directory and environment, and leads its own session: Ctrl-C does not reach it, and processes
    that its functions start end with it.
    """

    def __init__(self, *, is_unpacked: bool, most_s: int) -> None:
        """Starts the worker without waiting for it; its first message is READY. The options are
        those of function_worker.serve."""
        ours, theirs = socket.socketpair()
        paths = [path for path in sys.path if isinstance(path, str)]
        with theirs:
            code = _CODE.format(
                paths=paths,
                fd=theirs.fileno(),
                parent=os.getpid(),
                is_unpacked=is_unpacked,
                most_s=most_s,
            )
            # Several workers run in parallel, so each one's PyTorch gets a single thread.
            environment = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **os.environ}
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                stdout=2,
                env=environment,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self.connection = Connection(ours.detach())

    @property
    def pid(self) -> int:
        return self._process.pid

    def has_ended(self) -> bool:
        """Tells whether the process has ended. Its exit status is left for `end` to read; until
        then no other process can get the same id."""
        try:
            flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
            return os.waitid(os.P_PID, self.pid, flags) is not None
        except ChildProcessError:
            return True

    def end(self) -> str:
        """Kills the worker and all that its functions started. Says how the worker ended, if it
        ended by itself."""
        self.connection.close()
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        return _describe_end(self._process.wait())


def _describe_end(status: int) -> str:
    if status == -signal.SIGKILL:
        return "its process was killed (SIGKILL: is the memory full?)"
    if status < 0:
        return f"its process was killed by {signal.Signals(-status).name}"
    return f"its process ended with status {status}"

"""One process per row, so that memory is the row's own; the parent has them step in turns."""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import multiprocessing
import signal
import time
import traceback
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from bench.counts import count_step
from bench.step_profile import profile_step
from bench.train_rows import RowSpec, build_row, compare_first_losses
from minimind.errors import MiniMindError
from minimind.runtime.devices import limit_threads
from minimind.runtime.memory import PeakMemory

_STOP_S = 10


class WorkerError(Exception):
    """A row's process broke; the message holds its traceback."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """One optimizer step of one row."""

    seconds: float
    loss: float
    num_targets: int
    num_tokens: int
    num_places: int
    attended: int


class Worker:
    """The parent's side of one row's process."""

    def __init__(self, spec: RowSpec) -> None:
        self.spec = spec
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, spec))
        self._process.start()
        theirs.close()

    def call(self, method: str, *arguments: Any) -> Any:
        """Runs a method of _Served there and waits for its answer. Raises what user error it
        raised, and WorkerError for any other."""
        self.send(method, *arguments)
        return self.receive()

    def send(self, method: str, *arguments: Any) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._connection.send((method, arguments))

    def receive(self) -> Any:
        try:
            kind, value = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(_STOP_S)
            raise WorkerError(
                f"{self.spec.name}: the process died with exit code {self._process.exitcode} "
                "(-9: killed, most often for want of memory)"
            ) from None
        if kind == "user_error":
            raise value
        if kind == "error":
            raise WorkerError(f"{self.spec.name}: {value}")
        return value

    def close(self) -> None:
        self._connection.close()
        self._process.join(_STOP_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(connection: Connection, spec: RowSpec) -> None:
    # Ctrl-C reaches the whole group; the parent decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=logging.WARNING, format=f"{spec.name}: %(message)s")
    warnings.filterwarnings("ignore", category=FutureWarning)
    limit_threads(1)
    served = _Served(spec)
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = ("value", getattr(served, method)(*arguments))
        except MiniMindError as error:
            answer = ("user_error", error)
        except Exception:
            answer = ("error", traceback.format_exc())
        connection.send(answer)


class _Served:
    """What the parent can ask of a row."""

    def __init__(self, spec: RowSpec) -> None:
        self._spec = spec
        self._device = spec.run.device.torch_device

    def compare_first_losses(self) -> tuple[float, float]:
        return compare_first_losses(self._spec)

    def build(self) -> dict[str, Any]:
        self._row = build_row(self._spec)
        parameters = list(self._row.module.parameters())
        return {
            "precision": self._row.precision,
            "parameter_tensors": len(parameters),
            "parameters": sum(p.numel() for p in parameters),
            "threads": torch.get_num_threads(),
        }

    def start_timing(self) -> None:
        """After the warm-up: what it made stays, and its peaks are forgotten."""
        gc.collect()
        gc.freeze()
        _reset_peak_resident()
        self._memory = PeakMemory(self._device)

    def step(self, index: int) -> StepTime:
        data = self._row.data(index)
        if self._device.type == "cuda" and not isinstance(data.batches[0], tuple):
            data.batches[:] = [batch.pin_memory() for batch in data.batches]
        self._wait()
        start = time.perf_counter()
        loss = self._row.step(data.batches)
        self._wait()
        seconds = time.perf_counter() - start
        value = float(loss)
        if not math.isfinite(value):
            raise RuntimeError(f"the loss of step {index} is {value}")
        return StepTime(
            seconds=seconds,
            loss=value,
            num_targets=data.num_targets,
            num_tokens=data.num_tokens,
            num_places=data.num_places,
            attended=data.attended,
        )

    def measure(self, index: int) -> dict[str, Any]:
        """Peak memory and operator counts, on steps of their own where measuring costs time."""
        # Else those who look for live tensors overlook the frozen.
        gc.unfreeze()
        resident = _peak_resident()
        with self._memory.measured():
            if self._device.type != "cuda":
                self._row.step(self._row.data(index).batches)
        reserved = None
        if self._device.type == "cuda":
            reserved = torch.cuda.max_memory_reserved(self._device)
        data = self._row.data(index)
        counts = count_step(lambda: self._row.step(data.batches), self._device)
        return {
            "peak_bytes": self._memory.peak_bytes,
            "peak_resident_bytes": resident,
            "peak_reserved_bytes": reserved,
            **counts,
        }

    def profile(self, index: int) -> dict[str, Any]:
        data = self._row.data(index)
        return profile_step(lambda: self._row.step(data.batches), self._device)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _reset_peak_resident() -> None:
    """Linux forgets it when asked to (proc(5), clear_refs); else it stays that since the start."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_resident() -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    return None

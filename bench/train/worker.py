"""Runs in the process of a row of bench.train: takes its steps and measures them."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from minimind_kernels import backend

from bench.train.counts import count_step, profile_step
from bench.train.documents import StepData
from bench.train.rollouts import compare_rollouts
from bench.train.rows import EngineRow, build_row
from bench.train.specs import RowSpec
from bench.train.step_parts import StepParts
from bench.workers import peak_resident, reset_peak_resident
from minimind.runtime.heap import keep_freed_memory
from minimind.runtime.memory import PeakMemory, freeze_objects, live_tensor_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Holds the time, loss and sizes of one optimizer step of one row."""

    seconds: float
    loss: float
    data: StepData[Any]
    """The sizes of what the step learned from, without the batches."""


class TrainedRow:
    """Holds the methods of a row that the parent calls."""

    def __init__(self, spec: RowSpec) -> None:
        self._spec = spec
        self._device = spec.run.device.torch_device
        keep_freed_memory()  # as in a run

    def build(self) -> dict[str, Any]:
        self._row = build_row(self._spec)
        parameters = list(self._row.module.parameters())
        return {
            "precision": self._row.precision,
            "kernels": getattr(self._row, "kernels", backend.kernels_setting()),
            "parameter_tensors": len(parameters),
            "parameters": sum(p.numel() for p in parameters),
            "trained_parameters": sum(p.numel() for p in parameters if p.requires_grad),
            "threads": torch.get_num_threads(),
        }

    def start_timing(self) -> None:
        """Ends the warm-up: hides the objects that it made from the garbage collector, and resets
        the peaks of memory."""
        freeze_objects()
        reset_peak_resident()
        self._memory = PeakMemory(self._device)

    def step(self, index: int) -> StepTime:
        """Takes step `index`, which is the next of the row. The time covers the whole step until
        the device is done, including the wait for data that is read ahead."""
        data = self._row.steps.step(index)
        self._wait()
        start = time.perf_counter()
        loss = self._row.step()
        self._wait()
        seconds = time.perf_counter() - start
        value = float(loss)
        if self._row.answers is not None:
            data = self._row.answers.take()
        if not math.isfinite(value):
            raise RuntimeError(f"the loss of step {index} is {value}")
        return StepTime(seconds=seconds, loss=value, data=replace(data, batches=[]))

    def measure(self) -> dict[str, Any]:
        """Gives peaks of memory, parts of a step and counts; takes extra steps for those that slow
        a step down."""
        resident, on_gpu = peak_resident(), self._device.type == "cuda"
        between_steps = torch.cuda.memory_allocated(self._device) if on_gpu else live_tensor_bytes()
        with self._memory.measured():
            if not on_gpu:
                self._row.step()
        reserved = torch.cuda.max_memory_reserved(self._device) if on_gpu else None
        with StepParts(self._row.module, self._device) as parts:
            self._row.step()
        counts = count_step(self._row.step, self._device)
        if isinstance(self._row, EngineRow) and self._row.answers is not None:
            counts |= compare_rollouts(self._row.run, self._row.steps)
        return {
            "live_bytes_between_steps": between_steps,
            "peak_bytes": self._memory.peak_bytes,
            "peak_resident_bytes": resident,
            "peak_reserved_bytes": reserved,
            **parts.to_dict(),
            **counts,
        }

    def profile(self) -> dict[str, Any]:
        return profile_step(self._row.step, self._device)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

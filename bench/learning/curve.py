"""Trains one method from one seed, and measures its loss on held-out documents along the way."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from bench.train.documents import Documents, PaddedSteps, one_row
from bench.train.padded import is_padded
from bench.train.rows import build_row
from bench.train.specs import RowSpec
from minimind.stages import STAGES

_HELD_OUT_ROWS = 8
"""The number of documents in a held-out batch."""


class CurveRow:
    """Holds the methods of a row that the parent calls."""

    def __init__(self, spec: RowSpec) -> None:
        self._spec, self._device = spec, spec.run.device.torch_device
        self._seconds, self._steps, self._tokens = 0.0, 0, 0

    def build(self) -> dict[str, Any]:
        self._row = build_row(self._spec)
        return {"precision": self._row.precision, "threads": torch.get_num_threads()}

    def train(self, until: int) -> dict[str, Any]:
        """Takes steps up to step `until`. Gives the steps, useful tokens and seconds so far."""
        while self._steps < until:
            start = time.perf_counter()
            loss = float(self._row.step())  # waits for the device
            self._seconds += time.perf_counter() - start
            self._tokens += self._row.steps.step(self._steps).num_tokens
            self._steps += 1
            if not np.isfinite(loss):
                raise FloatingPointError(f"step {self._steps}: the loss is {loss}")
        return {"seconds": self._seconds, "steps": self._steps, "tokens": self._tokens}

    @torch.no_grad()
    def held_out_loss(self, held_out: Documents) -> float:
        """Gives the mean loss over the targets of the held-out documents, which are padded or
        packed as the row trains."""
        spec, ids = self._spec, held_out.ids
        stage = STAGES[spec.run.stage](spec.run.recipe)
        padded = PaddedSteps(held_out, rows=_HELD_OUT_ROWS, accumulation=1, steps=1)
        total = count = 0.0
        for at in range(0, len(ids), _HELD_OUT_ROWS):
            some = ids[at : at + _HELD_OUT_ROWS]
            targets = sum(len(one) - 1 for one in some)
            if is_padded(spec):
                batch = (x.to(self._device) for x in padded.pad(some))
                mean = float(self._row.loss(*batch))  # type: ignore[attr-defined]
            else:
                batch = one_row(some, held_out.pad_id).to(self._device)
                mean = float(stage.loss(self._row.module, batch).total) / targets
            total, count = total + mean * targets, count + targets
        return total / count

"""Computes the validation loss. Its batches are read ahead, as in training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic

import torch

from minimind.data.prefetch import prefetched
from minimind.engine.deepspeed_engine import DeepSpeedEngine
from minimind.engine.stage import InT, Stage
from minimind.errors import TrainingError
from minimind.runtime.devices import send
from minimind.runtime.progress import mark_progress


@dataclass(frozen=True, slots=True)
class _OnDevice(Generic[InT]):
    """Moves batches to the device while they are read; can be read several times."""

    batches: Iterable[InT]
    device: torch.device

    def __iter__(self) -> Iterator[InT]:
        on_gpu = self.device.type == "cuda"
        ahead = prefetched(batch.pin_memory() if on_gpu else batch for batch in self.batches)
        with contextlib.closing(ahead):  # type: ignore[type-var]
            for batch in ahead:
                mark_progress()
                yield batch.to(self.device)


@torch.no_grad()
def validation_loss(
    stage: Stage[InT, Any], engine: DeepSpeedEngine, eval_data: Iterable[InT]
) -> float:
    """Gives the loss per count over the batches of all ranks, with the policy in eval mode. All
    ranks call it. Raises TrainingError where the counts are all 0."""
    engine.train(False)
    total = torch.zeros(1, dtype=torch.float64, device=engine.device)
    count = 0
    for batch, loss in stage.evaluate(engine, _OnDevice(eval_data, engine.device)):
        total += loss.total
        count += batch.count
    sums = torch.cat([total, send([count], engine.device, torch.float64)])
    summed, counted = engine.sum_over_ranks(sums).tolist()
    engine.train()
    if not counted:
        raise TrainingError("the validation data holds no target")
    return summed / counted

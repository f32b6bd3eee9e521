"""The steps of a run's own loader, for stages whose data is more than text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench.documents import StepData, packed_step
from minimind.data.tokenizer import Tokenizer
from minimind.run.inputs import build_loaders
from minimind.run.resolve import ResolvedRun
from minimind.runtime.ranks import read_ranks
from minimind.types import Batch


class LoadedSteps:
    """The first `num_steps` of a run's data. To a stage it is a loader that holds no more than
    those, so that a reference is asked about no other pairs."""

    def __init__(self, run: ResolvedRun, tokenizer: Tokenizer, num_steps: int) -> None:
        self._loader, _ = build_loaders(run, tokenizer, read_ranks())
        self._num_steps = num_steps
        self.micro_batch = run.micro_batch_size
        self.num_rows = num_steps * run.train_batch_size

    def step(self, index: int) -> StepData[Any]:
        return packed_step(self._loader.batches(index))

    @property
    def fingerprint(self) -> str:
        return f"{self._loader.fingerprint}-{self._num_steps}x{self.num_rows}"

    @property
    def num_units(self) -> int:
        return self._loader.num_units

    def all_batches(self) -> Iterator[Batch]:
        for index in range(self._num_steps):
            yield from self._loader.batches(index)

"""Decides which rows each rank reads in which optimizer step.

The order depends only on (data, tokenizer, seq_len, seed) and the step's number. So resuming needs
no saved state, and any number of ranks reads the same rows in the same step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from minimind.data.batching import PackedRows
from minimind.data.mixture import WeightedSource
from minimind.data.prefetch import prefetched
from minimind.errors import ConfigError
from minimind.types import Batch


class PackedLoader:
    """Gives the training batches of any optimizer step.

    The rows form an endless sequence: all rows of the first epoch in a random order, then all of
    the second in another, and so on. Step s reads rows_per_step of them, from number
    s·rows_per_step on. Micro-batch k of a step goes to rank k mod world_size.
    """

    def __init__(
        self,
        sources: Sequence[WeightedSource],
        *,
        seq_len: int,
        rows_per_step: int,
        micro_batch: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        pad_id: int,
    ) -> None:
        """`rows_per_step` counts the rows of all ranks. Raises ConfigError where it is not a
        multiple of micro_batch · world_size."""
        if micro_batch < 1 or rows_per_step < 1 or rows_per_step % (micro_batch * world_size):
            raise ConfigError(
                f"{rows_per_step} rows a step cannot be divided into micro-batches of "
                f"{micro_batch} rows on each of {world_size} ranks: it must be a multiple of "
                f"{micro_batch * world_size}"
            )
        self.rows = PackedRows(sources, seq_len, seed, pad_id)
        """The rows of an epoch."""
        self._rows_per_step = rows_per_step
        self.micro_batch = micro_batch
        self._rank = rank
        self._world_size = world_size
        self._seed = seed
        # The orders of two epochs are kept, since a step may reach into the next epoch.
        self._epoch_order = lru_cache(maxsize=2)(self._compute_epoch_order)

    @property
    def num_rows(self) -> int:
        """Gives the number of rows in an epoch, over all ranks."""
        return len(self.rows)

    @property
    def num_units(self) -> int:
        """Gives the number of units in an epoch, which PackedRow numbers from 0."""
        return self.rows.num_units

    @property
    def fingerprint(self) -> str:
        """Identifies the data, tokenizer, format, weights, row length and seed: loaders with the
        same fingerprint give the same rows in the same order."""
        return self.rows.fingerprint

    def steps(self, epochs: float) -> int:
        """Gives the number of optimizer steps that read `epochs` passes; the last step may reach
        into the next pass."""
        return math.ceil(round(epochs * self.num_rows, 6) / self._rows_per_step)

    def batches(self, step: int) -> list[Batch]:
        """Builds this rank's micro-batches of an optimizer step, counted from 0."""
        return [self.rows.batch(rows) for rows in self._micro_batches(step)]

    def all_batches(self) -> Iterator[Batch]:
        """Yields the micro-batches of all ranks in the first epoch; the last one may reach into the
        second."""
        for first in range(0, self.num_rows, self.micro_batch):
            yield self.rows.batch(self._rows_at(first, self.micro_batch))

    def describe(self, step: int, micro: int) -> list[str]:
        """Gives `file:line` of every document in one of this rank's micro-batches, row by row."""
        rows = self._micro_batches(step)[micro]
        return [source for row in rows for source in self.rows.describe(row)]

    def read(self, from_step: int, to_step: int, pin: bool = False) -> Iterator[list[Batch]]:
        """Yields the micro-batches of each step. A background thread builds them some steps before
        they are used, and with `pin` in page-locked memory. Closing the iterator ends the
        thread."""

        def build() -> Iterator[list[Batch]]:
            for step in range(from_step, to_step):
                batches = self.batches(step)
                yield [batch.pin_memory() for batch in batches] if pin else batches

        return prefetched(build())

    def _micro_batches(self, step: int) -> list[list[int]]:
        rows = self._rows_at(step * self._rows_per_step, self._rows_per_step)
        size = self.micro_batch
        stride = size * self._world_size
        return [rows[at : at + size] for at in range(self._rank * size, len(rows), stride)]

    def _rows_at(self, first: int, count: int) -> list[int]:
        """Gives `count` rows of the endless sequence, from number `first` on."""
        places = [divmod(at, self.num_rows) for at in range(first, first + count)]
        return [int(self._epoch_order(epoch)[index]) for epoch, index in places]

    def _compute_epoch_order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._seed, 1, epoch]).permutation(self.num_rows)


class EvalLoader:
    """Gives validation batches: every document once, always in the same order, all batches of the
    same shape.

    Iterating gives this rank's batches. Every rank has the same number, so that collectives match;
    the last batches are filled up with rows of padding, which have no targets.
    """

    def __init__(
        self,
        sources: Sequence[WeightedSource],
        *,
        seq_len: int,
        micro_batch: int,
        rank: int = 0,
        world_size: int = 1,
        pad_id: int,
        max_rows: int = 0,
        first_unit: int = 0,
    ) -> None:
        """Ignores the sources' weights. `max_rows` above 0 selects a random part of the rows,
        always the same one. `first_unit` is the number of the first unit, which follows those of
        the training data."""
        unweighted = [WeightedSource(source.cache) for source in sources]
        self.rows = PackedRows(unweighted, seq_len, 0, pad_id, first_unit)
        """All rows of the data, read or not."""
        chosen = np.arange(len(self.rows))
        if 0 < max_rows < len(chosen):
            # The first rows of a plan hold the longest documents, so the part is drawn at random.
            chosen = np.sort(np.random.default_rng(0).permutation(chosen)[:max_rows])
        self._chosen: list[int] = chosen.tolist()
        self.micro_batch = micro_batch
        self._rank = rank
        self._world_size = world_size

    @property
    def num_rows(self) -> int:
        return len(self._chosen)

    @property
    def num_units(self) -> int:
        """Gives the number of units in the data, read or not."""
        return self.rows.num_units

    @property
    def fingerprint(self) -> str:
        """Identifies the data, tokenizer, format and row length, and the number of rows read."""
        return f"{self.rows.fingerprint}-{self.num_rows}"

    def __len__(self) -> int:
        """Gives the number of batches on each rank."""
        return math.ceil(self.num_rows / (self.micro_batch * self._world_size))

    def __iter__(self) -> Iterator[Batch]:
        for number in range(len(self)):
            yield self._batch(number * self._world_size + self._rank)

    def all_batches(self) -> Iterator[Batch]:
        """Yields the batches of all ranks, without those that are padding only."""
        for number in range(math.ceil(self.num_rows / self.micro_batch)):
            yield self._batch(number)

    def _batch(self, number: int) -> Batch:
        first = number * self.micro_batch
        return self.rows.batch(self._chosen[first : first + self.micro_batch], self.micro_batch)

"""Gives the rows of a benchmark their data: the same documents, cut at one length, padded or
packed; or the first steps of a run's own data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch

from minimind.data.collate import collate
from minimind.data.loader import PackedLoader
from minimind.data.packing import build_row, plan_packing
from minimind.data.prefetch import read_steps
from minimind.data.token_cache import TokenCache
from minimind.errors import DataError
from minimind.types import IGNORE_INDEX, Batch, PackedRow

BatchT = TypeVar("BatchT")
PackedBatchT = TypeVar("PackedBatchT", bound=Batch)


@dataclass(frozen=True, slots=True)
class StepData(Generic[BatchT]):
    """The micro-batches of one optimizer step, and what is in them."""

    batches: list[BatchT]
    num_targets: int
    num_tokens: int
    """Without padding."""
    num_places: int
    """With it."""
    attended: int
    """Pairs of a token and one it sees, itself included."""


class Steps(Protocol):
    """The data of a row, by optimizer step."""

    def step(self, index: int) -> StepData[Any]: ...


def read_ahead(steps: Steps, numbers: Iterable[int], pin: bool = False) -> Iterator[list[Any]]:
    """Yields each step's micro-batches as the loader of a training run does: built up to two steps
    ahead of their use, in a background thread."""
    return read_steps(lambda number: steps.step(number).batches, numbers, pin)


def packed_step(batches: list[PackedBatchT]) -> StepData[PackedBatchT]:
    """Counts what is in packed micro-batches."""
    lengths = []
    for batch in batches:
        starts = batch.cu_seqlens[:-1].long()
        is_document = batch.is_token_BT.flatten()[starts]
        lengths.append(batch.cu_seqlens.diff()[is_document].long())
    lengths = torch.cat(lengths)
    return StepData(
        batches=batches,
        num_targets=sum(batch.num_targets for batch in batches),
        num_tokens=int(lengths.sum()),
        num_places=sum(batch.ids_BT.numel() for batch in batches),
        attended=int((lengths * (lengths + 1) // 2).sum()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Documents:
    """What every row of a benchmark trains on."""

    ids: list[np.ndarray]
    """int64; each of two tokens or more."""
    max_tokens: int
    pad_id: int
    seed: int


def draw_documents(
    cache: TokenCache, *, max_tokens: int, wanted_tokens: int, pad_id: int, seed: int
) -> Documents:
    """Random documents, each cut at `max_tokens`, until they hold `wanted_tokens` or there are no
    more. Raises DataError where none has a target."""
    drawn: list[np.ndarray] = []
    total = 0
    for document in np.random.default_rng([seed, 0]).permutation(cache.num_documents):
        ids = cache.tokens(int(document), 0, max_tokens)
        if len(ids) < 2:
            continue
        drawn.append(ids.astype(np.int64))
        total += len(ids)
        if total >= wanted_tokens:
            break
    if not drawn:
        raise DataError(f"{cache.path}: no document has two tokens")
    return Documents(ids=drawn, max_tokens=max_tokens, pad_id=pad_id, seed=seed)


class PaddedSteps:
    """Each document in a row of its own, padded: (ids [B, T], labels [B, T]), labels shifted.

    A run of a few steps takes a sample evenly spread over the lengths of all documents, so that
    it holds the share of padding of all.
    """

    def __init__(self, documents: Documents, *, rows: int, accumulation: int, steps: int) -> None:
        self._documents, self._rows, self._accumulation = documents, rows, accumulation
        self._per_step = rows * accumulation
        by_length = sorted(documents.ids, key=len)
        count = self._per_step * steps
        places = ((np.arange(count) + 0.5) * len(by_length) / count).astype(int)
        order = np.random.default_rng([documents.seed, 1]).permutation(count)
        self._sample = [by_length[place] for place in places[order]]

    def ids(self, index: int) -> list[np.ndarray]:
        """The documents of step `index`."""
        first = index * self._per_step % len(self._sample)
        return self._sample[first : first + self._per_step]

    def num_tokens(self, index: int) -> int:
        """Counts the tokens of step `index` without padding."""
        return sum(map(len, self.ids(index)))

    def step(self, index: int) -> StepData[tuple[torch.Tensor, torch.Tensor]]:
        chosen = self.ids(index)
        batches = [
            self.pad(chosen[at : at + self._rows]) for at in range(0, len(chosen), self._rows)
        ]
        lengths = np.array([len(ids) for ids in chosen])
        return StepData(
            batches=batches,
            num_targets=int(sum((labels != IGNORE_INDEX).sum() for _, labels in batches)),
            num_tokens=int(lengths.sum()),
            num_places=len(chosen) * self._documents.max_tokens,
            attended=int((lengths * (lengths + 1) // 2).sum()),
        )

    def pad(self, ids: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (len(ids), self._documents.max_tokens)
        ids_BT = np.full(shape, self._documents.pad_id, dtype=np.int64)
        labels_BT = np.full(shape, IGNORE_INDEX, dtype=np.int64)
        for row, one in enumerate(ids):
            ids_BT[row, : len(one)] = one
            labels_BT[row, : len(one) - 1] = one[1:]
        return torch.from_numpy(ids_BT), torch.from_numpy(labels_BT)


class PackedSteps:
    """The documents packed into rows of `seq_len`, as the loader of a training run does it, for
    which it can stand."""

    def __init__(
        self, documents: Documents, *, seq_len: int, micro_batch: int, accumulation: int
    ) -> None:
        self._documents, self._micro_batch = documents, micro_batch
        self._per_step = micro_batch * accumulation
        lengths = np.array([len(ids) for ids in documents.ids])
        self._plan = plan_packing(lengths, seq_len, seed=documents.seed)
        self._epoch_order = lru_cache(maxsize=2)(self._compute_epoch_order)

    @property
    def fingerprint(self) -> str:
        return f"{len(self._documents.ids)} documents in {self._plan.num_rows} rows"

    def read(self, from_step: int, to_step: int, pin: bool = False) -> Iterator[list[Batch]]:
        return read_ahead(self, range(from_step, to_step), pin)

    def describe(self, step: int, micro: int) -> list[str]:
        """The numbers of the documents in one of a step's micro-batches."""
        rows = self._rows(step)[micro * self._micro_batch : (micro + 1) * self._micro_batch]
        parts = [self._plan.piece_doc[self._part(row)] for row in rows]
        return [f"document {number}" for number in np.concatenate(parts).tolist()]

    def num_tokens(self, index: int) -> int:
        """Counts the tokens of step `index` without padding."""
        lengths = [self._plan.piece_len[self._part(row)].sum() for row in self._rows(index)]
        return int(sum(lengths))

    def step(self, index: int) -> StepData[Batch]:
        rows = [self._build(row) for row in self._rows(index)]
        size = self._micro_batch
        return packed_step([collate(rows[at : at + size]) for at in range(0, len(rows), size)])

    def _rows(self, index: int) -> list[int]:
        """Lists the rows of step `index`, by their numbers in the plan."""
        return [self._row(index * self._per_step + place) for place in range(self._per_step)]

    def _row(self, place: int) -> int:
        epoch, index = divmod(place, self._plan.num_rows)
        return int(self._epoch_order(epoch)[index])

    def _compute_epoch_order(self, epoch: int) -> np.ndarray:
        seed = self._documents.seed
        return np.random.default_rng([seed, 2, epoch]).permutation(self._plan.num_rows)

    def _part(self, row: int) -> slice:
        """Says where the plan holds a row's pieces."""
        return slice(int(self._plan.row_offsets[row]), int(self._plan.row_offsets[row + 1]))

    def _build(self, row: int) -> PackedRow:
        plan, part = self._plan, self._part(row)
        pieces = zip(
            plan.piece_doc[part], plan.piece_start[part], plan.piece_len[part], strict=True
        )
        ids = [self._documents.ids[doc][start : start + n] for doc, start, n in pieces]
        return build_row([(one, None) for one in ids], plan.seq_len, self._documents.pad_id)


class FirstSteps:
    """The first steps of a run's own data. To a stage it is a loader that holds no more than those,
    so that a reference is asked about no other documents."""

    def __init__(self, loader: PackedLoader, num_steps: int, rows_per_step: int) -> None:
        self._loader, self._num_steps = loader, num_steps
        self.micro_batch = loader.micro_batch
        self.num_rows = num_steps * rows_per_step
        self.num_units = loader.num_units
        self.read, self.describe = loader.read, loader.describe
        self.batches, self.steps = loader.batches, loader.steps

    @property
    def fingerprint(self) -> str:
        return f"{self._loader.fingerprint}-{self._num_steps}x{self.num_rows}"

    def all_batches(self) -> Iterator[Batch]:
        for index in range(self._num_steps):
            yield from self._loader.batches(index)

    def step(self, index: int) -> StepData[Any]:
        return packed_step(self._loader.batches(index))


def one_row(ids: Sequence[np.ndarray], pad_id: int) -> Batch:
    """Documents side by side in one row without padding."""
    total = sum(len(one) for one in ids)
    return collate([build_row([(one, None) for one in ids], total, pad_id)])

"""The same documents for every row of a benchmark: cut at one length, padded or packed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar

import numpy as np
import torch

from minimind.data.collate import collate
from minimind.data.packing import build_row, plan_packing
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
    """The documents packed into rows of `seq_len`, as the loader of a training run does it."""

    def __init__(
        self, documents: Documents, *, seq_len: int, micro_batch: int, accumulation: int
    ) -> None:
        self._documents, self._micro_batch, self._accumulation = (
            documents,
            micro_batch,
            accumulation,
        )
        lengths = np.array([len(ids) for ids in documents.ids])
        self._plan = plan_packing(lengths, seq_len, seed=documents.seed)
        self._epoch_order = lru_cache(maxsize=2)(self._compute_epoch_order)

    def step(self, index: int) -> StepData[Batch]:
        per_step = self._micro_batch * self._accumulation
        places = range(index * per_step, (index + 1) * per_step)
        rows = [self._row(place) for place in places]
        return packed_step(
            [
                collate([self._build(row) for row in rows[at : at + self._micro_batch]])
                for at in range(0, per_step, self._micro_batch)
            ]
        )

    def _row(self, place: int) -> int:
        epoch, index = divmod(place, self._plan.num_rows)
        return int(self._epoch_order(epoch)[index])

    def _compute_epoch_order(self, epoch: int) -> np.ndarray:
        seed = self._documents.seed
        return np.random.default_rng([seed, 2, epoch]).permutation(self._plan.num_rows)

    def _build(self, row: int) -> PackedRow:
        plan = self._plan
        part = slice(int(plan.row_offsets[row]), int(plan.row_offsets[row + 1]))
        pieces = zip(
            plan.piece_doc[part], plan.piece_start[part], plan.piece_len[part], strict=True
        )
        ids = [self._documents.ids[doc][start : start + n] for doc, start, n in pieces]
        return build_row([(one, None) for one in ids], plan.seq_len, self._documents.pad_id)


def one_row(ids: Sequence[np.ndarray], pad_id: int) -> Batch:
    """Documents side by side in one row without padding."""
    total = sum(len(one) for one in ids)
    return collate([build_row([(one, None) for one in ids], total, pad_id)])

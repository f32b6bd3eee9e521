"""Gives the rows of a benchmark their data: the same documents, cut at one length and padded or
packed; or the first steps of the data that a run reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar, cast

import numpy as np
import torch

from minimind.data.collate import collate
from minimind.data.loader import PackedLoader, WeightedSource
from minimind.data.packing import build_row
from minimind.data.text_format import TEXT
from minimind.data.token_cache import TokenCache, build_token_cache
from minimind.data.tokenizer import Tokenizer
from minimind.errors import DataError
from minimind.samples.files import sample_data_path
from minimind.types import IGNORE_INDEX, Batch

BatchT = TypeVar("BatchT")
PackedBatchT = TypeVar("PackedBatchT", bound=Batch)


@dataclass(frozen=True, slots=True)
class StepData(Generic[BatchT]):
    """Holds the micro-batches of one optimizer step, and their sizes."""

    batches: list[BatchT]
    num_targets: int
    num_tokens: int
    """The number of tokens without padding."""
    num_places: int
    """The number of tokens with padding."""
    attended: int
    """The number of pairs of a token and one that it sees, itself included."""


class Steps(Protocol):
    """Gives the data of a row by optimizer step."""

    def step(self, index: int) -> StepData[Any]: ...


def packed_step(batches: list[PackedBatchT]) -> StepData[PackedBatchT]:
    """Counts the targets, tokens and places of packed micro-batches."""
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


class FirstSteps:
    """Gives the first steps of a loader, and hides the rest from the stage: so a reference caches
    the documents of these steps alone."""

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


class ShortFirst(PackedLoader):
    """Reads the rows with the most documents first."""

    def _compute_epoch_order(self, epoch: int) -> np.ndarray:
        return np.argsort(-np.diff(self.rows.plan.row_offsets), kind="stable")


@dataclass(frozen=True, slots=True, kw_only=True)
class Documents:
    """Holds the documents that every row of a benchmark trains on. A run's loader uses it as a
    token cache."""

    ids: list[np.ndarray]
    """int64; each document has two tokens or more."""
    max_tokens: int
    pad_id: int
    seed: int
    short_first: bool = False
    """Tells whether rows of many short documents come first, instead of a random order."""

    def pack(self, *, seq_len: int, micro_batch: int, accumulation: int, steps: int) -> FirstSteps:
        """Packs them into rows of `seq_len`, as a training run does."""
        rows = micro_batch * accumulation
        loader = (ShortFirst if self.short_first else PackedLoader)(
            [WeightedSource(cast(TokenCache, self))],
            seq_len=seq_len,
            rows_per_step=rows,
            micro_batch=micro_batch,
            seed=self.seed,
            pad_id=self.pad_id,
        )
        return FirstSteps(loader, steps, rows)

    format = property(lambda self: TEXT)
    key = property(lambda self: f"{len(self.ids)} documents")
    num_documents = property(lambda self: len(self.ids))
    lengths = property(lambda self: np.array([len(ids) for ids in self.ids]))

    def tokens(self, document: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self.ids[document][start:stop]

    def is_target(self, document: int, start: int = 0, stop: int | None = None) -> None:
        """Gives None: every token is a target."""

    def source(self, document: int) -> str:
        return f"document {document}"


def draw_documents(
    data: str | None,
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
    wanted_tokens: int,
    seed: int,
    split: Literal["train", "val"] = "train",
) -> Documents:
    """Draws documents of `data`, by default of the sample data's `split`, and cuts each at
    `max_tokens`, until they hold `wanted_tokens` or there are no more. Raises DataError where no
    document has a target."""
    path = data or str(sample_data_path(split))
    cache = build_token_cache(path, tokenizer, progress=True)
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
    return Documents(ids=drawn, max_tokens=max_tokens, pad_id=tokenizer.pad_id, seed=seed)


class PaddedSteps:
    """Puts each document in a separate, padded row: (ids [B, T], labels [B, T]), labels shifted.

    A run of a few steps takes a sample evenly spread over the lengths of all documents, so that the
    sample has their share of padding.
    """

    def __init__(self, documents: Documents, *, rows: int, accumulation: int, steps: int) -> None:
        self._documents, self._rows = documents, rows
        self._per_step = rows * accumulation
        by_length = sorted(documents.ids, key=len)
        count = self._per_step * steps
        places = ((np.arange(count) + 0.5) * len(by_length) / count).astype(int)
        order = np.random.default_rng([documents.seed, 1]).permutation(count)
        self._sample = [by_length[place] for place in places[order]]

    def ids(self, index: int) -> list[np.ndarray]:
        """Lists the documents of step `index`."""
        first = index * self._per_step % len(self._sample)
        return self._sample[first : first + self._per_step]

    def step(self, index: int) -> StepData[tuple[torch.Tensor, torch.Tensor]]:
        chosen, size = self.ids(index), self._rows
        batches = [self.pad(chosen[at : at + size]) for at in range(0, len(chosen), size)]
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


def one_row(ids: Sequence[np.ndarray], pad_id: int) -> Batch:
    """Puts documents side by side in one row without padding."""
    total = sum(len(one) for one in ids)
    return collate([build_row([(one, None) for one in ids], total, pad_id)])

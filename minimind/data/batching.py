"""Rows into batches: what the plan says of an epoch, built as arrays and tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import torch

from minimind.data.mixture import Mixture, WeightedSource
from minimind.data.packing import PACKING_VERSION, build_row, plan_packing
from minimind.errors import ConfigError
from minimind.types import IGNORE_INDEX, Batch, PackedRow, PairBatch


class PackedRows:
    """All rows of an epoch, by number. The same for every rank: only the rows asked for are built.

    `seed` decides how documents are packed, and which of them a fractional weight takes.
    """

    def __init__(
        self,
        sources: Sequence[WeightedSource],
        seq_len: int,
        seed: int,
        pad_id: int,
        first_unit: int = 0,
    ) -> None:
        """`first_unit` is the number of the data's first unit. Raises ConfigError for a seq_len
        below 2, a negative seed, or mixed formats."""
        if seed < 0:
            raise ConfigError(f"seed is {seed}; it must be 0 or more")
        formats = {source.cache.format for source in sources}
        if len(formats) > 1:
            names = ", ".join(sorted(f.name for f in formats))
            raise ConfigError(f"one run reads one format, not {names}")
        self.mixture = Mixture(sources, seed)
        policy = "split" if all(f.split_long for f in formats) else "truncate"
        self._unit_size = self.mixture.documents_per_unit
        self.plan = plan_packing(
            self.mixture.lengths,
            seq_len,
            seed=seed,
            long_documents=policy,
            documents_per_unit=self._unit_size,
        )
        self._units_per_row = int(np.diff(self.plan.row_offsets).max()) // self._unit_size
        self._pad_id = pad_id
        self._first_unit = first_unit
        parts = (PACKING_VERSION, self.mixture.fingerprint, seq_len, seed, pad_id)
        self.fingerprint = hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()

    def __len__(self) -> int:
        return self.plan.num_rows

    def count_cut_before_targets(self) -> int:
        """Truncated documents that have no target left."""
        plan = self.plan
        count = 0
        if plan.num_truncated:
            is_cut = plan.piece_len < self.mixture.lengths[plan.piece_doc]
            for piece in np.flatnonzero(is_cut).tolist():
                cache, number = self.mixture.locate(int(plan.piece_doc[piece]))
                is_target = cache.is_target(number, 1, int(plan.piece_len[piece]))
                count += is_target is not None and not is_target.any()
        return count

    def build(self, row: int) -> PackedRow:
        pieces = []
        for document, start, length in self._pieces(row):
            cache, number = self.mixture.locate(document)
            stop = start + length
            pieces.append((cache.tokens(number, start, stop), cache.is_target(number, start, stop)))
        units = [self._first_unit + self.mixture.unit(document) for document in self._firsts(row)]
        return build_row(pieces, self.plan.seq_len, self._pad_id, units)

    def batch(self, rows: Sequence[int], size: int = 0) -> Batch:
        """The rows as one batch of at least `size` rows: those that are missing are padding."""
        empty = build_row([], self.plan.seq_len, self._pad_id)
        built = [self.build(row) for row in rows] + [empty] * (size - len(rows))
        return collate(built) if self._unit_size == 1 else collate_pairs(built, self._units_per_row)

    def describe(self, row: int) -> list[str]:
        """`file:line` of each unit in a row."""
        located = [self.mixture.locate(document) for document in self._firsts(row)]
        return [cache.source(number) for cache, number in located]

    def _firsts(self, row: int) -> list[int]:
        """The first document of each unit."""
        return [document for document, _, _ in self._pieces(row)][:: self._unit_size]

    def _pieces(self, row: int) -> zip[tuple[int, int, int]]:
        plan = self.plan
        part = slice(int(plan.row_offsets[row]), int(plan.row_offsets[row + 1]))
        return zip(
            plan.piece_doc[part].tolist(),
            plan.piece_start[part].tolist(),
            plan.piece_len[part].tolist(),
            strict=True,
        )


def collate(rows: Sequence[PackedRow]) -> Batch:
    """Stacks rows of one length. A document starts wherever a position is 0: at each row's start
    too, and at the start of its padding."""
    ids_BT = np.stack([row.ids_T for row in rows])
    labels_BT = np.stack([row.labels_T for row in rows])
    positions_BT = np.stack([row.positions_T for row in rows])
    starts = np.flatnonzero(positions_BT.reshape(-1) == 0)
    cu_seqlens = np.append(starts, positions_BT.size).astype(np.int32)
    is_token_BT = np.stack([row.doc_T for row in rows]) >= 0
    return Batch(
        ids_BT=torch.from_numpy(ids_BT),
        labels_BT=torch.from_numpy(labels_BT),
        positions_BT=torch.from_numpy(positions_BT),
        cu_seqlens=torch.from_numpy(cu_seqlens),
        is_token_BT=torch.from_numpy(is_token_BT),
        max_len=int(np.diff(cu_seqlens).max()),
        num_tokens=int(is_token_BT.sum()),
        num_targets=int((labels_BT != IGNORE_INDEX).sum()),
    )


def collate_pairs(rows: Sequence[PackedRow], pairs_per_row: int) -> PairBatch:
    """`collate`, and which tokens are whose: each row has places for `pairs_per_row` pairs, so that
    shapes do not depend on how many it holds. A pair of which an answer was cut away whole compares
    nothing and takes no place."""
    batch = collate(rows)
    pair_ids_BP = np.full((len(rows), pairs_per_row), -1, dtype=np.int64)
    for number, row in enumerate(rows):
        pair_ids_BP[number, : len(row.units_U)] = row.units_U
    doc_BT = np.stack([row.doc_T for row in rows]).astype(np.int64)
    first_B1 = 2 * pairs_per_row * np.arange(len(rows))[:, None]
    doc_BT = np.where(doc_BT < 0, 2 * pair_ids_BP.size, doc_BT + first_B1)
    target_docs = doc_BT[(batch.labels_BT != IGNORE_INDEX).numpy()]
    targets_P2 = np.bincount(target_docs, minlength=2 * pair_ids_BP.size)[: 2 * pair_ids_BP.size]
    pair_ids_BP[(targets_P2.reshape(*pair_ids_BP.shape, 2) == 0).any(-1)] = -1
    return PairBatch(
        **{field.name: getattr(batch, field.name) for field in fields(batch)},
        doc_M=torch.from_numpy(doc_BT.reshape(-1)),
        pair_ids_P=torch.from_numpy(pair_ids_BP.reshape(-1)),
        num_pairs=int((pair_ids_BP >= 0).sum()),
    )

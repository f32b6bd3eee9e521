"""Rows into batches: what the plan says of an epoch, built as arrays and tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from minimind.data.mixture import Mixture, WeightedSource
from minimind.data.packing import PACKING_VERSION, build_row, plan_packing
from minimind.errors import ConfigError
from minimind.types import IGNORE_INDEX, Batch, PackedRow


class PackedRows:
    """All rows of an epoch, by number. The same for every rank: only the rows asked for are built.

    `seed` decides how documents are packed, and which of them a fractional weight takes.
    """

    def __init__(
        self, sources: Sequence[WeightedSource], seq_len: int, seed: int, pad_id: int
    ) -> None:
        """Raises ConfigError for a seq_len below 2, a negative seed, or mixed formats."""
        if seed < 0:
            raise ConfigError(f"seed is {seed}; it must be 0 or more")
        formats = {source.cache.format for source in sources}
        if len(formats) > 1:
            names = ", ".join(sorted(f.name for f in formats))
            raise ConfigError(f"one run reads one format, not {names}")
        self.mixture = Mixture(sources, seed)
        policy = "split" if all(f.split_long for f in formats) else "truncate"
        self.plan = plan_packing(self.mixture.lengths, seq_len, seed=seed, long_documents=policy)
        self._pad_id = pad_id
        parts = (PACKING_VERSION, self.mixture.fingerprint, seq_len, seed, pad_id)
        self.fingerprint = hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()

    def __len__(self) -> int:
        return self.plan.num_rows

    def build(self, row: int) -> PackedRow:
        pieces = []
        for document, start, length in self._pieces(row):
            cache, number = self.mixture.locate(document)
            stop = start + length
            pieces.append((cache.tokens(number, start, stop), cache.is_target(number, start, stop)))
        return build_row(pieces, self.plan.seq_len, self._pad_id)

    def empty(self) -> PackedRow:
        """A row of padding alone."""
        return build_row([], self.plan.seq_len, self._pad_id)

    def describe(self, row: int) -> list[str]:
        """`file:line` of each document in a row."""
        located = [self.mixture.locate(document) for document, _, _ in self._pieces(row)]
        return [cache.source(number) for cache, number in located]

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
    return Batch(
        ids_BT=torch.from_numpy(ids_BT),
        labels_BT=torch.from_numpy(labels_BT),
        positions_BT=torch.from_numpy(positions_BT),
        cu_seqlens=torch.from_numpy(cu_seqlens),
        is_token_BT=torch.from_numpy(np.stack([row.doc_T for row in rows]) >= 0),
        max_len=int(np.diff(cu_seqlens).max()),
        num_targets=int((labels_BT != IGNORE_INDEX).sum()),
    )

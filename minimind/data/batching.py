"""Builds batches from the rows that a packing plan describes, as arrays and tensors."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from minimind.data.formats import TEXT_COLUMN
from minimind.data.mixture import Mixture, WeightedSource
from minimind.data.packing import (
    PACKING_VERSION,
    PackingPlan,
    build_row,
    plan_packing,
    plan_unpacked,
)
from minimind.errors import ConfigError
from minimind.types import Batch, PackedRow

logger = logging.getLogger(__name__)


class PackedRows:
    """Gives the packed rows of an epoch by number. They are the same on every rank, and only the
    rows that are asked for are built.

    `seed` decides how documents are packed, and which documents a fractional weight selects.
    """

    def __init__(
        self,
        sources: Sequence[WeightedSource],
        seq_len: int,
        seed: int,
        pad_id: int,
        first_unit: int = 0,
    ) -> None:
        """`first_unit` is the number of the epoch's first unit. Raises ConfigError for a seq_len
        below 2, a negative seed, and sources of different formats."""
        if seed < 0:
            raise ConfigError(f"seed is {seed}; it must be 0 or more")
        formats = {source.cache.format for source in sources}
        if len(formats) > 1:
            names = ", ".join(sorted(f.name for f in formats))
            raise ConfigError(f"one run reads one format, not {names}")
        (self._format,) = formats
        self._columns = self._format.columns
        self.mixture = Mixture(sources, seed)
        self._unit_size = self._format.documents_per_unit
        self.plan = self._plan(seq_len, seed)
        if self.plan.num_left_out:
            logger.warning(
                "%d of %d prompts are longer than a row of %d tokens and are left out: raise "
                "--seq_len to read them",
                self.plan.num_left_out,
                self.plan.num_left_out + self.num_units,
                seq_len,
            )
        self._units_per_row = int(np.diff(self.plan.row_offsets).max()) // self._unit_size
        self._pad_id = pad_id
        self._first_unit = first_unit
        parts = (PACKING_VERSION, self.mixture.fingerprint, seq_len, seed, pad_id)
        if not self._format.packed:
            parts = (*parts, "unpacked")
        self.fingerprint = hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()

    def _plan(self, seq_len: int, seed: int) -> PackingPlan:
        if not self._format.packed:
            assert self._unit_size == 1, "a row of its own is for one document"
            return plan_unpacked(self.mixture.lengths, seq_len)
        return plan_packing(
            self.mixture.lengths,
            seq_len,
            seed=seed,
            split_long=self._format.split_long,
            documents_per_unit=self._unit_size,
        )

    def __len__(self) -> int:
        return self.plan.num_rows

    @property
    def num_units(self) -> int:
        """Gives the number of units in an epoch: documents, pieces of long documents, or pairs."""
        return len(self.plan.piece_doc) // self._unit_size

    def count_lost(self) -> int:
        """Counts the units from which nothing is learned because they were cut to fit a row: a
        document without any target left, or a pair whose documents have become equal."""
        plan, size = self.plan, self._unit_size
        if not plan.num_truncated:
            return 0
        is_cut = plan.piece_len < self.mixture.lengths[plan.piece_doc]
        return sum(map(self._is_lost, np.flatnonzero(is_cut.reshape(-1, size).any(1)).tolist()))

    def _is_lost(self, unit: int) -> bool:
        pieces = range(unit * self._unit_size, (unit + 1) * self._unit_size)
        texts: list[bytes] = []
        for piece in pieces:
            cache, number = self.mixture.locate(int(self.plan.piece_doc[piece]))
            length = int(self.plan.piece_len[piece])
            is_target = cache.is_target(number, 1, length)
            if is_target is not None and not is_target.any():
                return True
            texts.append(cache.tokens(number, 0, length).tobytes())
        return self._unit_size > 1 and len(set(texts)) == 1

    def build(self, row: int) -> PackedRow:
        pieces = []
        for document, start, length in self._pieces(row):
            cache, number = self.mixture.locate(document)
            stop = start + length
            pieces.append((cache.tokens(number, start, stop), cache.is_target(number, start, stop)))
        first = self._first_unit + int(self.plan.row_offsets[row]) // self._unit_size
        units = range(first, first + len(pieces) // self._unit_size)
        return build_row(
            pieces, self.plan.seq_len, self._pad_id, units, self._meta(self._firsts(row))
        )

    def batch(self, rows: Sequence[int], size: int = 0) -> Batch:
        """Builds a batch of the given rows, filled up to `size` rows with rows of padding."""
        empty = build_row([], self.plan.seq_len, self._pad_id, meta=self._meta([]))
        built = [self.build(row) for row in rows] + [empty] * (size - len(rows))
        return self._format.collate(built, self._units_per_row)

    def _meta(self, firsts: Sequence[int]) -> dict[str, Any]:
        """Collects the column values of the units whose first documents are given."""
        located = [self.mixture.locate(document) for document in firsts] if self._columns else []
        found = [cache.meta(number // self._unit_size) for cache, number in located]
        return {
            name: [meta[name] for meta in found]
            if kind == TEXT_COLUMN
            else np.array([meta[name] for meta in found], dtype=kind)
            for name, kind in self._columns.items()
        }

    def describe(self, row: int) -> list[str]:
        """Gives `file:line` of each unit in a row."""
        located = [self.mixture.locate(document) for document in self._firsts(row)]
        return [cache.source(number) for cache, number in located]

    def _firsts(self, row: int) -> list[int]:
        """Gives the first document of each unit in a row."""
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

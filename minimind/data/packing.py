"""Plans which pieces of which documents are packed into which row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minimind.errors import ConfigError
from minimind.types import IGNORE_INDEX, PackedRow

PACKING_VERSION = 1
"""A part of the loader's fingerprint; raise it whenever the plans change."""
DEFAULT_WINDOW = 1 << 14


@dataclass(frozen=True, slots=True, kw_only=True)
class PackingPlan:
    """Holds the pieces of all rows in flat arrays. Row r holds the pieces row_offsets[r] to
    row_offsets[r + 1]; piece i holds the tokens piece_start[i] to piece_start[i] + piece_len[i] of
    document piece_doc[i]."""

    seq_len: int
    row_offsets: np.ndarray
    """int64 [rows + 1]."""
    piece_doc: np.ndarray
    """int64 [pieces]."""
    piece_start: np.ndarray
    """int64 [pieces]."""
    piece_len: np.ndarray
    """int32 [pieces]."""
    num_truncated: int
    """The number of documents that were cut to fit a row."""
    num_left_out: int = 0
    """The number of units that are left out because they fit no row."""

    @property
    def num_rows(self) -> int:
        return len(self.row_offsets) - 1

    @property
    def num_tokens(self) -> int:
        """Gives the number of tokens in all rows, without padding."""
        return int(self.piece_len.sum(dtype=np.int64))

    @property
    def padding_share(self) -> float:
        """Gives the share of all rows' positions that is padding, 0 to 1."""
        return 1.0 - self.num_tokens / max(1, self.num_rows * self.seq_len)


def plan_packing(
    lengths: np.ndarray,
    seq_len: int,
    window: int = DEFAULT_WINDOW,
    seed: int = 0,
    split_long: bool = True,
    documents_per_unit: int = 1,
) -> PackingPlan:
    """Packs documents of `lengths` tokens into rows of `seq_len` tokens: best fit decreasing,
    within windows of shuffled documents. A row that one window does not fill takes documents of the
    next.

    Each `documents_per_unit` successive documents form a unit, which goes into one row. A document
    longer than a row is split into pieces. Each piece begins with the last token of the piece
    before, so that every transition between tokens stays. Without `split_long` the documents of a
    unit are truncated to the largest common length at which they fit a row together. Windows keep
    rows mixed: sorting all documents at once would put all short ones together. The plan depends
    only on the arguments. Raises ConfigError for a seq_len below 2.
    """
    if seq_len < 2:
        raise ConfigError(f"seq_len is {seq_len}; a row needs at least 2 tokens to predict one")
    lengths = np.asarray(lengths, dtype=np.int64)
    assert not split_long or documents_per_unit == 1, "a split unit is none"
    num_truncated = 0
    if not split_long:
        fitting = _truncate(lengths.reshape(-1, documents_per_unit), seq_len).reshape(-1)
        num_truncated = int((fitting < lengths).sum())
        lengths = fitting
    piece_doc, piece_start, piece_len = _cut(lengths, seq_len)
    unit_len = piece_len.reshape(-1, documents_per_unit).sum(axis=1)
    generator = np.random.default_rng([seed, 0])
    order = generator.permutation(len(unit_len))
    bins = _OpenRows(seq_len)
    rows = np.empty(len(order), dtype=np.int64)
    for first in range(0, len(order), window):
        part = order[first : first + window]
        part = part[np.argsort(-unit_len[part], kind="stable")]
        order[first : first + window] = part
        rows[first : first + window] = bins.place(unit_len[part].tolist())
    by_row = np.argsort(rows, kind="stable")
    order = order[by_row]
    row_offsets = np.zeros(bins.num_rows + 1, dtype=np.int64)
    np.cumsum(np.bincount(rows, minlength=bins.num_rows), out=row_offsets[1:])
    pieces = order[:, None] * documents_per_unit + np.arange(documents_per_unit)
    pieces = pieces.reshape(-1)
    return PackingPlan(
        seq_len=seq_len,
        row_offsets=row_offsets * documents_per_unit,
        piece_doc=piece_doc[pieces],
        piece_start=piece_start[pieces],
        piece_len=piece_len[pieces],
        num_truncated=num_truncated,
    )


def build_row(
    pieces: Sequence[tuple[np.ndarray, np.ndarray | None]],
    seq_len: int,
    pad_id: int,
    units: Sequence[int] = (),
    meta: Mapping[str, Any] | None = None,
) -> PackedRow:
    """Builds one row of `seq_len` tokens from the (ids, is_target) of each piece, where None means
    that all are targets. A piece's first token is never a target, since nothing stands before it.
    `units` and `meta` are those of PackedRow."""
    ids_T = np.full(seq_len, pad_id, dtype=np.int64)
    labels_T = np.full(seq_len, IGNORE_INDEX, dtype=np.int64)
    doc_T = np.full(seq_len, -1, dtype=np.int32)
    lens = np.array([len(ids) for ids, _ in pieces], dtype=np.int64)
    ends = np.cumsum(lens)
    used = int(ends[-1]) if len(pieces) else 0
    assert used <= seq_len, "the plan put more into a row than it holds"
    starts = np.append(ends - lens, used)
    positions_T = np.arange(seq_len) - np.repeat(starts, np.append(lens, seq_len - used))
    if pieces:
        ids_T[:used] = np.concatenate([ids for ids, _ in pieces])
        labels_T[: used - 1] = ids_T[1:used]
        labels_T[ends - 1] = IGNORE_INDEX
        doc_T[:used] = np.repeat(np.arange(len(pieces), dtype=np.int32), lens)
        for (_, is_target), start in zip(pieces, starts.tolist(), strict=False):
            if is_target is not None:
                row_part = labels_T[start : start + len(is_target) - 1]
                row_part[~is_target[1:]] = IGNORE_INDEX
    return PackedRow(
        ids_T=ids_T,
        labels_T=labels_T,
        positions_T=positions_T,
        doc_T=doc_T,
        units_U=np.array(units, dtype=np.int64),
        meta=meta or {},
    )


def _truncate(lengths_UK: np.ndarray, seq_len: int) -> np.ndarray:
    """Gives the truncated lengths of each unit's documents: the smaller of a document's length and
    its unit's limit. The limit is the largest length at which the unit fits a row: if j documents
    are shorter, the others share equally the tokens that these leave."""
    num_documents = lengths_UK.shape[1]
    sorted_UK = np.sort(lengths_UK, axis=1)
    left_UK = seq_len - (np.cumsum(sorted_UK, axis=1) - sorted_UK)
    shares_UK = left_UK // np.arange(num_documents, 0, -1)
    return np.minimum(lengths_UK, shares_UK.max(axis=1, keepdims=True, initial=0))


def _cut(lengths: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts documents into pieces and gives (document, start, length) of each. A document of L >
    seq_len tokens has L - 1 transitions, and a piece holds seq_len - 1 of them."""
    stride = seq_len - 1
    num_pieces = np.maximum(1, -(-(lengths - 1) // stride))
    doc = np.repeat(np.arange(len(lengths)), num_pieces)
    first_piece = np.cumsum(num_pieces) - num_pieces
    start = (np.arange(len(doc)) - np.repeat(first_piece, num_pieces)) * stride
    length = np.minimum(seq_len, lengths[doc] - start).astype(np.int32)
    return doc, start, length


def plan_unpacked(lengths: np.ndarray, seq_len: int) -> PackingPlan:
    """Gives each document a row of its own, in order. A document of more than `seq_len` tokens is
    left out, since a truncated prompt would be another question. Raises ConfigError where no
    document fits."""
    lengths = np.asarray(lengths, dtype=np.int64)
    (fitting,) = np.nonzero(lengths <= seq_len)
    if not len(fitting):
        raise ConfigError(
            f"none of {len(lengths):,} prompts fits a row of {seq_len} tokens, the shortest has "
            f"{lengths.min():,}: raise --seq_len"
        )
    return PackingPlan(
        seq_len=seq_len,
        row_offsets=np.arange(len(fitting) + 1, dtype=np.int64),
        piece_doc=fitting,
        piece_start=np.zeros(len(fitting), dtype=np.int64),
        piece_len=lengths[fitting].astype(np.int32),
        num_truncated=0,
        num_left_out=len(lengths) - len(fitting),
    )


class _OpenRows:
    """Finds a row with enough room by best fit, in well under a microsecond: bit c of a big integer
    says whether any row has exactly c tokens left."""

    def __init__(self, seq_len: int) -> None:
        self.num_rows = 0
        self._seq_len = seq_len
        self._mask = 0
        self._bit = [1 << capacity for capacity in range(seq_len + 1)]
        self._rows: list[list[int]] = [[] for _ in range(seq_len + 1)]

    def place(self, lengths: list[int]) -> list[int]:
        """Gives a row for each piece: the one with the least sufficient room, or a new one."""
        mask, bit, open_rows, num_rows = self._mask, self._bit, self._rows, self.num_rows
        placed = []
        for length in lengths:
            fitting = mask >> length
            if fitting:
                capacity = (fitting & -fitting).bit_length() - 1 + length
                candidates = open_rows[capacity]
                row = candidates.pop()
                if not candidates:
                    mask ^= bit[capacity]
            else:
                capacity = self._seq_len
                row = num_rows
                num_rows += 1
            left = capacity - length
            if left:
                mask |= bit[left]
                open_rows[left].append(row)
            placed.append(row)
        self._mask, self.num_rows = mask, num_rows
        return placed

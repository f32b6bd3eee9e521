"""Joins packed rows into one micro-batch of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from minimind.types import IGNORE_INDEX, Batch, PackedRow, UnitBatch


def collate(rows: Sequence[PackedRow], units_per_row: int = 0) -> Batch:
    """Stacks rows of the same length. A document starts wherever a position is 0, which includes
    each row's start and the start of its padding. `units_per_row` is not used here; batches that
    know their units need it."""
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
        bounds=tuple(cu_seqlens.tolist()),
        is_token_BT=torch.from_numpy(is_token_BT),
        max_len=int(np.diff(cu_seqlens).max()),
        num_tokens=int(is_token_BT.sum()),
        num_targets=int((labels_BT != IGNORE_INDEX).sum()),
    )


def collate_units(
    rows: Sequence[PackedRow],
    units_per_row: int,
    documents_per_unit: int = 1,
    needs_targets: bool = True,
) -> UnitBatch:
    """Stacks rows as `collate` does, and assigns tokens to units. Each row has `units_per_row`
    places for units, so that shapes do not depend on how many units a row holds. A unit in which
    cutting has left a document without targets gets no place, unless its format has no targets at
    all."""
    batch = collate(rows)
    size = documents_per_unit
    unit_ids_BU = np.full((len(rows), units_per_row), -1, dtype=np.int64)
    for number, row in enumerate(rows):
        unit_ids_BU[number, : len(row.units_U)] = row.units_U
    doc_BT = np.stack([row.doc_T for row in rows]).astype(np.int64)
    num_documents = size * unit_ids_BU.size
    first_B1 = size * units_per_row * np.arange(len(rows))[:, None]
    doc_BT = np.where(doc_BT < 0, num_documents, doc_BT + first_B1)
    if needs_targets:
        target_docs = doc_BT[(batch.labels_BT != IGNORE_INDEX).numpy()]
        targets_BUK = np.bincount(target_docs, minlength=num_documents)[:num_documents].reshape(
            *unit_ids_BU.shape, size
        )
        unit_ids_BU[(targets_BUK == 0).any(-1)] = -1
    return batch.extend(
        UnitBatch,
        documents_per_unit=size,
        doc_M=torch.from_numpy(doc_BT.reshape(-1)),
        unit_ids_P=torch.from_numpy(unit_ids_BU.reshape(-1)),
        num_units=int((unit_ids_BU >= 0).sum()),
        meta=_collate_meta(rows, units_per_row),
    )


def _collate_meta(rows: Sequence[PackedRow], units_per_row: int) -> dict[str, Any]:
    """Joins the rows' column values, each at its unit's place."""
    columns: dict[str, Any] = {}
    for name, first in rows[0].meta.items():
        parts = [row.meta[name] for row in rows]
        if isinstance(first, np.ndarray):
            values_BU = np.zeros((len(rows), units_per_row), dtype=first.dtype)
            for number, part in enumerate(parts):
                values_BU[number, : len(part)] = part
            columns[name] = torch.from_numpy(values_BU.reshape(-1))
        else:
            padded = [[*part, *[""] * (units_per_row - len(part))] for part in parts]
            columns[name] = tuple(text for part in padded for text in part)
    return columns

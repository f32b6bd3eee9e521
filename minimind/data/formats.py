"""Defines what a kind of row is to the data pipeline. Each kind is defined in its own file,
`*_format.py`, named after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from minimind.types import Batch, PackedRow

TEXT_COLUMN = "text"
"""The kind of a column that holds a string for each row; any other is the name of a NumPy dtype."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """Describes a kind of row: its content, the tokens that are targets, its further columns, and
    how rows become a batch."""

    name: str
    version: str
    """Part of the cache key: raise it with every change of the result of `read`."""
    all_targets: bool
    """Every token is a target, so the cache stores no mask."""
    split_long: bool
    """Whether a document longer than a row is split; otherwise it is truncated."""
    read: Callable[..., list[Any]]
    """(rows, tokenizer) -> for each row its sample, or a BadRow that says what is wrong with it.
    Rows come by the batch, so that all cores tokenise. Further options are keyword arguments."""
    collate: Callable[[Sequence[PackedRow], int], Batch]
    """(packed rows, most units in a row of the run) -> one micro-batch (data/collate.py)."""
    documents_per_unit: int = 1
    """The documents of one sample, which stay together: two for a pair."""
    packed: bool = True
    """Whether samples stand side by side in a row. Otherwise each sample has its own row, and one
    that is longer than a row is left out."""
    columns: Mapping[str, str] = field(default_factory=dict, hash=False)
    """The columns of a sample's `meta`, by name: the name of a NumPy dtype for a number (`bool`,
    `float32`), or TEXT_COLUMN. The values travel through the cache and packing to the batch."""

    def with_options(self, **options: Any) -> Format:
        """Gives the same kind of row, read with these options of `read`. The options change the
        cache key."""
        if not options:
            return self
        version = f"{self.version} {sorted(options.items())}"
        return replace(self, version=version, read=partial(self.read, **options))

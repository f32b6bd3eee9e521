"""Defines what the data pipeline must know of a data format. Each format is defined in its own
file, `*_format.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from minimind.data.collate import collate
from minimind.types import Batch, PackedRow

TEXT_COLUMN = "text"
"""The kind of a column that holds a text for each row; any other kind is the name of a NumPy
dtype."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """Describes a data format: how its rows are tokenised, which tokens are targets, which further
    values a row has, and how rows become a batch."""

    name: str
    version: str
    """A part of the cache key; raise it whenever the result of `read` changes."""
    all_targets: bool
    """True where every token is a target: a text. The cache then stores no mask, and a model that
    is trained on such rows alone has not learnt to chat."""
    split_long: bool
    """True where a document longer than a row is split; otherwise it is truncated."""
    read: Callable[..., list[Any]]
    """Takes rows and the tokenizer; gives each row's sample, or a BadRow that says what is wrong.
    It gets many rows at once, so that all cores tokenise. Further options are keyword arguments."""
    collate: Callable[[Sequence[PackedRow], int], Batch]
    """Takes packed rows and the most units in any row of the run; gives a micro-batch
    (data/collate.py)."""
    documents_per_unit: int = 1
    """The documents in one sample, which stay together: two for a pair."""
    packed: bool = True
    """True where samples share rows. Otherwise each has a row of its own, and one longer than a row
    is left out."""
    columns: Mapping[str, str] = field(default_factory=dict, hash=False)
    """The kinds of the values in a sample's `meta`, by name: a NumPy dtype (`bool`, `float32`) or
    TEXT_COLUMN. The values travel through cache and packing to the batch."""

    def __post_init__(self) -> None:
        assert not (self.columns and self.collate is collate), "it drops columns: collate_units"

    def with_options(self, **options: Any) -> Format:
        """Gives the same format with these options of `read`, which become part of the cache
        key."""
        if not options:
            return self
        version = f"{self.version} {sorted(options.items())}"
        return replace(self, version=version, read=partial(self.read, **options))

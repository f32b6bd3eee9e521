"""Names the methods of training that are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from minimind.config.sizes import Sizes, default_sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """Is one way to train. Where a field is None, the stage and the preset decide."""

    name: str
    what: str
    """What differs from `default`, for a table."""
    row: str = "engine"
    """The row of bench.train that takes the steps."""
    rows: int | None = None
    """Rows of a step: packed ones, or documents of the row `original`."""
    seq_len: int | None = None
    ds_config: str = "zero2.json"
    learning_rate: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """As for --set."""

    def sizes(self, device_kind: str, preset: str) -> Sizes:
        """Gives the sizes of a step. A micro-batch holds what the preset's holds at most."""
        usual = default_sizes(device_kind, preset)
        rows = self.rows or usual.train_batch_size
        micro = next(n for n in range(min(rows, usual.micro_batch_size), 0, -1) if rows % n == 0)
        return Sizes(self.seq_len or usual.seq_len, rows, micro)

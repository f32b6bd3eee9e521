"""Names the methods of training that are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from minimind.config.sizes import Sizes, default_sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """Describes one way to train. Where a field is None, the stage and the preset decide."""

    name: str
    what: str
    """Says what differs from `default`, for a table."""
    row: str = "engine"
    """The row of bench.train that takes the steps."""
    rows: int | None = None
    """Rows of a step: packed ones, or documents of the row `original`."""
    seq_len: int | None = None
    learning_rate: float | None = None
    short_first: bool = False
    """Tells whether short documents are read first, instead of a random order."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Holds options as --set takes them."""

    def sizes(self, device_kind: str, preset: str) -> Sizes:
        """Gives the sizes of a step. A micro-batch of packed rows holds what the preset's holds at
        most; all documents of the row `original` are one micro-batch."""
        usual = default_sizes(device_kind, preset)
        rows = self.rows or usual.train_batch_size
        if self.row == "original":
            return Sizes(usual.seq_len, rows, rows)
        most = usual.micro_batch_size * usual.seq_len // (self.seq_len or usual.seq_len)
        micro = next(n for n in range(min(rows, most), 0, -1) if rows % n == 0)
        return Sizes(self.seq_len or usual.seq_len, rows, micro)


_ORIGINAL: dict[str, Any] = {
    "row": "original",
    "learning_rate": 5e-4,
    "settings": {"schedule": "cosine"},
}
_ADAMW: dict[str, Any] = {"optimizer": "AdamW"}
_EARLIER: dict[str, Any] = _ADAMW | {"schedule": "cosine"}
METHODS = {
    method.name: method
    for method in (
        Method(
            name="original", rows=32, **_ORIGINAL,
            what="the original's: 32 padded documents a step, fp32, AdamW at 5e-4",
        ),
        Method(
            name="original-8", rows=8, **_ORIGINAL,
            what="the original's with 8 documents a step",
        ),
        Method(
            name="earlier", rows=8, seq_len=1024, learning_rate=5e-4, settings=_EARLIER,
            what="this project's before the study: 8 rows of 1,024, AdamW at 5e-4",
        ),
        Method(name="default", what="the defaults: Muon, a steady rate and then a linear fall"),
        Method(name="adamw", what="AdamW for all weights", settings=_ADAMW),
        Method(
            name="adamw-tuned", learning_rate=2e-3,
            settings=_ADAMW | {"betas": [0.9, 0.95], "warmup_steps": 20, "schedule": "cosine"},
            what="AdamW for all weights at 2e-3, betas 0.9 and 0.95, 20 steps of warm-up",
        ),
        Method(name="rate-half", learning_rate=2e-3, what="half the rate"),
        Method(name="rate-double", learning_rate=8e-3, what="twice the rate"),
        Method(name="rows-half", rows=2, what="half the rows a step"),
        Method(name="rows-double", rows=8, what="twice the rows a step"),
        Method(name="short-rows", rows=16, seq_len=256, what="rows of 256, as many tokens a step"),
        Method(name="warmup", settings={"warmup_steps": 10}, what="10 steps of warm-up"),
        Method(name="betas", settings={"betas": [0.9, 0.95]}, what="betas 0.9 and 0.95"),
        Method(
            name="decay", settings={"weight_decay": 0.1, "weight_decay_factors": {"norm|embed": 0}},
            what="a decay of 0.1, on matrices alone",
        ),
        Method(name="to-zero", settings={"min_lr_ratio": 0}, what="the rate falls to 0"),
        Method(name="cosine", settings={"schedule": "cosine"}, what="the rate falls by a cosine"),
        Method(name="qk-norm", settings={"use_qk_norm": True}, what="norms on queries and keys"),
        Method(
            name="embedding-rate", settings={"lr_factors": {"embed": 0.3}},
            what="the embedding at 0.3 of the rate",
        ),
        Method(
            name="embedding-rate-3", settings={"lr_factors": {"embed": 3}},
            what="the embedding at three times the rate",
        ),
        Method(
            name="embedding-rate-10", settings={"lr_factors": {"embed": 10}},
            what="the embedding at ten times the rate",
        ),
        Method(name="z-loss", row="z_loss", what="a z-loss of 1e-4, in plain PyTorch"),
        Method(name="short-first", short_first=True, what="rows of short documents first"),
    )
}  # fmt: skip

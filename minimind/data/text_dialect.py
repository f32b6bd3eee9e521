"""Documents for pretraining: one form of row; plain text and what a file is packed in are the
containers' affair (data/containers.py)."""

from __future__ import annotations

from minimind.data.dialects import OWN, Dialect
from minimind.data.row_keys import KeyTable

TEXT_DIALECTS = (
    Dialect(
        OWN,
        "documents",
        '{"text": "…"}',
        KeyTable("", {"text": "the document"}),
        lambda data: "text" in data,
        lambda data, unread: data,
    ),
)

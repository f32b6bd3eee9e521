"""Reads documents for pretraining, which have a single form of row. Plain text and compression are
handled in data/containers.py."""

from __future__ import annotations

from minimind.data.dialects import OWN, Dialect
from minimind.data.row_keys import KeyTable

TEXT_DIALECTS = (
    Dialect(
        name=OWN,
        title="documents",
        example='{"text": "…"}',
        keys=KeyTable("", {"text": "the document"}),
        matches=lambda data: "text" in data,
        convert=lambda data, unread: data,
    ),
)

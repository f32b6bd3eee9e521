"""Makes text safe to print, wherever it comes from."""

from __future__ import annotations

import re

_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufff9-\ufffb]"
)
"""Matches the characters that a terminal obeys instead of showing them (ECMA-48's C0 and C1 without
tab and line feed, delete) and those that turn the direction of text around."""


def printable(text: object) -> str:
    """Gives `text` with U+FFFD in place of control characters. An escape sequence would let a
    model, a server or a file write the clipboard or hide what is shown. Pieces of a text give the
    pieces of the result."""
    return _CONTROLS.sub("\ufffd", str(text).replace("\r", ""))

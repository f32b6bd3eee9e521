"""Writes rows as a table that people and Markdown read."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Writes a Markdown table with aligned columns. The keys of the first row are the header, and
    all rows have them."""
    lines = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| "
        + " | ".join(
            cell + " " * (width - _width(cell)) for cell, width in zip(line, widths, strict=True)
        )
        + " |"
        for line in lines
    )


def _cell(value: Any) -> str:
    """Writes a value on one line, without a character that would end its cell."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _width(text: str) -> int:
    """Gives the columns of a terminal that a text takes; Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)

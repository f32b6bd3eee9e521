"""Writes rows as a table that people and Markdown read."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Writes a Markdown table with aligned columns. The keys of the first row are the header, and
    all rows have them."""
    return align_cells([list(rows[0]), *(list(row.values()) for row in rows)])


def align_cells(lines: Sequence[Sequence[Any]], *, numbers: bool = False) -> str:
    """Writes a Markdown table of a header and rows; with `numbers`, all columns but the first are
    aligned to the right."""
    cells = [list(map(_cell, line)) for line in lines]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    marks = [":" if numbers and place else "-" for place in range(len(widths))]
    cells.insert(1, ["-" * (width - 1) + mark for width, mark in zip(widths, marks, strict=True)])
    return "\n".join(f"| {' | '.join(map(_padded, line, widths, marks))} |" for line in cells)


def _padded(cell: str, width: int, mark: str) -> str:
    blank = " " * (width - _width(cell))
    return blank + cell if mark == ":" else cell + blank


def _cell(value: Any) -> str:
    """Writes a value on one line, without a character that would end its cell."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _width(text: str) -> int:
    """Gives the columns of a terminal that a text takes; Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)

"""Fills the marked blocks of the guide's pages.

`<!-- source: module:name -->` is followed by the source of that name, `<!-- example: name -->` by
the code of docs/guide/examples/name.py and by what it printed. Both end with `<!-- end -->`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from bench.guide.examples import example_code
from bench.guide.sources import source_of
from bench.harness import ROOT

GUIDE = ROOT / "docs" / "guide"
LANGUAGES = ("en", "zh")
_BLOCK = re.compile(
    r"(?P<start><!-- (?P<kind>source|example): (?P<name>\S+) -->\n)"
    r"(?P<text>.*?)(?P<end><!-- end -->)",
    re.DOTALL,
)
_OUTPUT = re.compile(r"```text\n(?P<text>.*?)\n```\n", re.DOTALL)


def pages() -> list[Path]:
    return [page for language in LANGUAGES for page in sorted((GUIDE / language).glob("*.md"))]


def fill_page(text: str, outputs: Mapping[str, str]) -> str:
    """Gives the page with its blocks filled again. An example without a new output keeps the one in
    the page. Raises MissingSourceError and FileNotFoundError for names that are not there."""

    def fill(found: re.Match[str]) -> str:
        name = found["name"]
        if found["kind"] == "source":
            block = _fenced("python", source_of(name))
        else:
            printed = outputs.get(name, read_output(found["text"]))
            block = _fenced("python", example_code(name)) + "\n" + _fenced("text", printed)
        return f"{found['start']}{block}{found['end']}"

    return _BLOCK.sub(fill, text)


def printed_in(text: str) -> dict[str, str]:
    """Gives the output of each example in a page, by the example's name."""
    blocks = _BLOCK.finditer(text)
    return {b["name"]: read_output(b["text"]) for b in blocks if b["kind"] == "example"}


def read_output(block: str) -> str:
    """Gives the output that an example's block holds, or "" where it was never run."""
    found = _OUTPUT.search(block)
    return found["text"] if found else ""


def _fenced(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```\n"

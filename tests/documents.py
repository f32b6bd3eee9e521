"""Reads Markdown documents for tests: headings, tables, links, and fenced blocks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[1]
_FOREIGN = re.compile(r"[a-z][a-z0-9+.-]*:|//")
"""How a link to another place than this repository begins."""


@dataclass(frozen=True, slots=True)
class Fence:
    """Holds a fenced block: its language, its text, and the line on which the text begins."""

    language: str
    text: str
    line: int


@dataclass(slots=True)
class Document:
    """Holds the parts of a document, each kind in their order."""

    path: Path
    levels: list[int] = field(default_factory=list)
    """The level of each heading."""
    anchors: list[str] = field(default_factory=list)
    """The anchor that GitHub gives each heading."""
    fences: list[Fence] = field(default_factory=list)
    tables: list[list[list[str]]] = field(default_factory=list)
    """The rows of each table, and their cells in Markdown."""
    links: list[str] = field(default_factory=list)
    """What links and images point to."""
    prose: list[str] = field(default_factory=list)
    """The text in Markdown of each paragraph and list item, tables and fences left out."""


def read_document(path: Path) -> Document:
    """Parses a file as GitHub does, as far as the parts of a Document go."""
    document = Document(path)
    tokens = MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8"))
    seen = Counter[str]()
    for before, token in zip([None, *tokens], tokens, strict=False):
        if token.type == "fence":
            assert token.map is not None
            document.fences.append(Fence(token.info.strip(), token.content, token.map[0] + 2))
        elif token.type == "table_open":
            document.tables.append([])
        elif token.type == "tr_open":
            document.tables[-1].append([])
        elif token.type == "inline":
            assert before is not None
            document.links += _targets(token)
            if before.type in ("th_open", "td_open"):
                document.tables[-1][-1].append(token.content)
            elif before.type == "heading_open":
                document.levels.append(int(before.tag[1:]))
                anchor = _anchor(token)
                document.anchors.append(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
                seen[anchor] += 1
            else:
                document.prose.append(token.content)
    return document


def _targets(inline: Token) -> Iterator[str]:
    for child in inline.children or ():
        target = child.attrs.get("href") or child.attrs.get("src")
        if target:
            yield str(target)


def _anchor(heading: Token) -> str:
    text = "".join(child.content for child in heading.children or ())
    return re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")


def broken_links(document: Document) -> list[str]:
    """Lists the links to files and headings of this repository that lead nowhere."""
    return [
        link for link in document.links if not _FOREIGN.match(link) and not _leads(document, link)
    ]


def _leads(document: Document, link: str) -> bool:
    place, _, anchor = link.partition("#")
    target = (document.path.parent / unquote(place)).resolve() if place else document.path
    if not target.is_relative_to(ROOT) or not target.exists():
        return False
    if not anchor:
        return True
    return target.suffix == ".md" and unquote(anchor) in read_document(target).anchors

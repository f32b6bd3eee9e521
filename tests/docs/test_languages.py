"""README.md and README_zh.md say the same: commands, code, tables, numbers, links and headings."""

from __future__ import annotations

import re

from documents import Document, read_document
from readme_commands import read_commands
from training_runs import ROOT

ENGLISH, CHINESE = (read_document(ROOT / name) for name in ("README.md", "README_zh.md"))


def numbers(text: str) -> list[str]:
    """Lists the numbers of a text, which stand in another order in another language."""
    return sorted(number.strip(".,") for number in re.findall(r"\d[\d.,]*", text))


def code(text: str) -> list[str]:
    return sorted(re.findall(r"`([^`]+)`", text))


def same_code(cell: str) -> list[str]:
    """Lists a cell's code, but for the words in a row of data that stand for something."""
    return [re.sub(r'\[[^]"{]*\]', "[…]", text) for text in code(cell)]


def test_headings_have_the_same_levels() -> None:
    assert ENGLISH.levels == CHINESE.levels
    assert len(ENGLISH.levels) > 8


def test_commands_and_code_are_the_same() -> None:
    english, chinese = (read_commands(ROOT / name) for name in ("README.md", "README_zh.md"))
    assert [command.words for command in english] == [command.words for command in chinese]
    assert len(english) > 20

    def others(document: Document) -> list[tuple[str, str]]:
        return [(f.language, f.text) for f in document.fences if f.language != "sh"]

    assert others(ENGLISH) == others(CHINESE)


def test_tables_have_the_same_cells() -> None:
    def shapes(document: Document) -> list[list[int]]:
        return [[len(row) for row in table] for table in document.tables]

    assert shapes(ENGLISH) == shapes(CHINESE)
    assert len(ENGLISH.tables) > 4
    for english, chinese in zip(ENGLISH.tables, CHINESE.tables, strict=True):
        for left, right in zip(english, chinese, strict=True):
            for one, other in zip(left, right, strict=True):
                assert numbers(one) == numbers(other)
                assert same_code(one) == same_code(other)


def test_links_are_the_same() -> None:
    def targets(document: Document) -> list[str]:
        language = {"README.md": "the other", "README_zh.md": "the other"}
        return sorted(
            language.get(link, link).replace("docs/guide/zh/", "docs/guide/en/")
            for link in document.links
        )

    assert targets(ENGLISH) == targets(CHINESE)
    assert len(ENGLISH.links) > 30


def test_prose_has_the_same_numbers_and_names() -> None:
    assert len(ENGLISH.prose) == len(CHINESE.prose)
    for one, other in zip(ENGLISH.prose, CHINESE.prose, strict=True):
        assert numbers(one) == numbers(other), f"{one}\n{other}"
        assert code(one) == code(other), f"{one}\n{other}"

"""Every link of a document to another file, picture or heading of this repository leads there."""

from __future__ import annotations

from pathlib import Path

import pytest
from documents import broken_links, read_document
from training_runs import ROOT

FOLDERS = ("docs", "kernels", "launch")
DOCUMENTS = sorted(
    {*ROOT.glob("*.md"), *(path for name in FOLDERS for path in (ROOT / name).rglob("*.md"))}
)


def test_every_link_leads_somewhere() -> None:
    assert ROOT / "README.md" in DOCUMENTS
    found = {path: broken_links(read_document(path)) for path in DOCUMENTS}
    assert not {str(path.relative_to(ROOT)): bad for path, bad in found.items() if bad}


@pytest.mark.parametrize(
    ("link", "is_broken"),
    [
        ("other.md", False),
        ("other.md#two-words-1", False),
        ("#here-c", False),
        ("https://example.org/nowhere", False),
        ("missing.md", True),
        ("other.md#three-words", True),
        ("../outside.md", True),
        ("picture.png", True),
    ],
)
def test_a_link_that_leads_nowhere_is_found(
    link: str, is_broken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("documents.ROOT", tmp_path)
    (tmp_path / "other.md").write_text("# Two words\n\n## Two words\n")
    (tmp_path / "document.md").write_text(f"# Here: `C`!\n\n[text]({link})\n")
    document = read_document(tmp_path / "document.md")
    assert broken_links(document) == [link] * is_broken

"""The guide as a site: it builds without a warning, and its pages are whole."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.harness import ROOT

pytest.importorskip("material")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_there_in_its_language(site: Path) -> None:
    for language in ("en", "zh"):
        for source in (ROOT / "docs" / "guide" / language).glob("*.md"):
            name = "index" if source.stem == "README" else source.stem
            html = (site / language / f"{name}.html").read_text(encoding="utf-8")
            assert f'<html lang="{language}"' in html
            assert "$$" not in html
            assert "arithmatex" not in html
            assert html.count("<math") >= source.read_text(encoding="utf-8").count("$$") // 2


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        html = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"', html)
        assert not loaded, f"{page.name} loads {loaded}"


def test_links_of_the_built_pages_resolve(site: Path) -> None:
    for page in site.rglob("*.html"):
        if page.name == "404.html":
            continue
        html = page.read_text(encoding="utf-8")
        for target in re.findall(r'(?:href|src)="([^"#?:]+)(?:[#?][^"]*)?"', html):
            place = page.parent / target
            assert place.is_file() or (place / "index.html").is_file(), f"{page}: {target}"

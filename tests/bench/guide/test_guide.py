"""bench.guide: the guide says what the code says, in both languages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.guide import pictures
from bench.guide.__main__ import main
from bench.guide.examples import all_examples, prints_the_same, run_example
from bench.guide.pages import GUIDE, LANGUAGES, fill_page, pages, printed_in
from bench.guide.sources import MissingSourceError, source_of
from bench.harness import ROOT

SLOW = {"data_shift", "dpo_reference", "model_parts"}
"""The examples that train for more than some seconds."""
CHAPTERS = sorted(page.name for page in (GUIDE / "en").glob("*.md") if page.name != "README.md")


def read(language: str, chapter: str) -> str:
    return (GUIDE / language / chapter).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", pages(), ids=lambda page: f"{page.parent.name}/{page.stem}")
def test_code_in_a_page_is_the_source(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert fill_page(text, {}) == text, "python -m bench.guide none takes it anew"


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in all_examples()]
)
def test_an_example_prints_what_the_pages_say(name: str) -> None:
    said = [printed_in(page.read_text(encoding="utf-8")).get(name) for page in pages()]
    outputs = [text for text in said if text is not None]
    assert len(outputs) == len(LANGUAGES), "every example stands once in each language"
    assert outputs[0] == outputs[1]
    printed, _ = run_example(name)
    assert prints_the_same(outputs[0], printed), f"python -m bench.guide {name}\n{printed}"


@pytest.mark.parametrize("chapter", ["README.md", *CHAPTERS])
def test_both_languages_have_the_same_parts(chapter: str) -> None:
    parts = [_parts(read(language, chapter)) for language in LANGUAGES]
    assert parts[0] == parts[1]


def _parts(text: str) -> list[str]:
    """Lists what must be equal in both languages, in its order: headings by level, formulas, code,
    blocks, pictures and links between chapters."""
    found = re.finditer(
        r"^(?P<heading>#+) |(?P<block><!-- [^>]*-->)|```(?P<code>.*?)```|\$\$(?P<formula>.*?)\$\$"
        r"|!\[[^]]*\]\((?P<picture>[^)]*)\)|\]\((?P<link>[a-z]+\.md)\)",
        text,
        re.DOTALL | re.MULTILINE,
    )
    return [f"{match.lastgroup} {match[match.lastgroup or 0]}" for match in found]


def test_a_page_in_one_language_has_one_in_the_other() -> None:
    for language in LANGUAGES:
        assert sorted(page.name for page in (GUIDE / language).glob("*.md")) == sorted(
            [*CHAPTERS, "README.md"]
        )


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_is_whole(language: str, chapter: str) -> None:
    text = read(language, chapter)
    last = text.split("\n## ")[-1]
    assert "```bash\n" in last, "it ends with something to run"
    assert "<!-- source: " in text
    assert "<!-- example: " in text
    assert "$$" in text
    assert re.findall(r"!\[[^]]+\]\(\.\./figures/(\w+)\.png\)", text) == [Path(chapter).stem]
    assert (GUIDE / "figures" / f"{Path(chapter).stem}.png").is_file()
    other = LANGUAGES[1 - LANGUAGES.index(language)]
    assert f"](../{other}/{chapter})" in text.split("\n## ")[0], "a link to the other language"


def test_files_that_pages_name_are_there() -> None:
    names = re.compile(r"`((?:minimind|docs|bench|kernels|ds_configs)/[\w./]+|launch/[\w.]+)`")
    for page in pages():
        for name in names.findall(page.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), f"{page.parent.name}/{page.name} names {name}"


def test_source_of_functions_methods_and_constants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "import os\n\nLIMIT: int = 3\nNAMES = (\n    1,\n)\n\n\nclass A:\n"
    source += "    @property\n    def b(self):\n        return 1\n"
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "place.py").write_text(source)
    monkeypatch.setattr("bench.guide.sources.ROOT", tmp_path)
    monkeypatch.setattr("bench.guide.sources._ROOTS", (tmp_path,))
    head = "# some/place.py\n"
    assert source_of("some.place:LIMIT") == f"{head}LIMIT: int = 3"
    assert source_of("some.place:NAMES") == f"{head}NAMES = (\n    1,\n)"
    assert source_of("some.place:A.b") == f"{head}@property\ndef b(self):\n    return 1"
    for gone in ("some.place:A.c", "some.place:a", "some.other:A", "some.place:LIMIT.b"):
        with pytest.raises(MissingSourceError, match=r"there is no module|defines no"):
            source_of(gone)


def test_numbers_may_differ_by_rounding_and_text_may_not() -> None:
    assert prints_the_same("loss 2.00 after 1,000", "loss 2.01 after 1,000")
    assert not prints_the_same("loss 2.00", "loss 2.60")
    assert not prints_the_same("loss 2.00", "Loss 2.00")
    assert not prints_the_same("loss 2.00", "loss 2.00 3.00")
    assert not prints_the_same("", "loss 2.00")
    assert not prints_the_same("1e-8", "1e+8")


def test_a_name_that_is_gone_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MissingSourceError, match=r"minimind/types\.py defines no Weather"):
        fill_page("<!-- source: minimind.types:Weather -->\n<!-- end -->", {})
    with pytest.raises(SystemExit, match="2"):
        main(["weather"])
    assert "weather: the examples are" in capsys.readouterr().err


def test_only_blocks_change() -> None:
    before = "a\n<!-- source: minimind.types:IGNORE_INDEX -->\nold\n<!-- end -->\nz\n"
    after = fill_page(before, {})
    assert after.startswith("a\n<!-- source: minimind.types:IGNORE_INDEX -->\n```python\n")
    assert after.endswith("IGNORE_INDEX = -100\n```\n<!-- end -->\nz\n")
    assert fill_page(after, {}) == after


def test_pictures_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "FIGURES", tmp_path)
    for name, draw in pictures.PICTURES.items():
        assert draw() == tmp_path / f"{name}.png"
        assert (tmp_path / f"{name}.png").stat().st_size > 5000

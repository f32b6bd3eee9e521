"""Numbers and words on pictures: separators, and letters that a font must have."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.legend import Legend
from matplotlib.text import Text

from minimind.pictures import fonts
from minimind.pictures.axes import (
    count_axis,
    format_number,
    legend_above,
    legend_below,
    legend_beside,
)
from minimind.pictures.style import picture


@pytest.fixture
def no_chinese_font(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(fonts, "_cjk_family", lambda: None)
    fonts._log_missing_once.cache_clear()
    yield
    fonts._log_missing_once.cache_clear()


def draw(path: Path, word: str) -> Any:
    """A picture with `word` wherever one can stand; gives the figure."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with picture(path, 7, 4) as figure:
            left, right = figure.subplots(1, 2)
            left.plot([1, 2], [1, 2], label=word)
            left.set(title=word, xlabel=f"{word}\n(1 line more)", ylabel=word)
            left.text(1, 1, word)
            left.set_xticks([1, 2], [word, "b"])
            left.set_xlim(0.5, 2.5)
            right.barh([word, "b"], [1, 2])
            figure.suptitle(word)
            legend_beside(figure, left)
    return figure


def words(figure: Any) -> set[str]:
    return {text.get_text() for text in figure.findobj(Text)} - {""}


@pytest.mark.usefixtures("no_chinese_font")
def test_without_a_chinese_font_the_code_points_are_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        figure = draw(tmp_path / "a.png", "run 基线, α≤β")
    assert not re.search("[\u4e00-\u9fff]", "".join(words(figure)))
    shown = "run [U+57FA][U+7EBF], α≤β"
    assert {shown, "b", f"{shown}\n(1 line more)"} <= words(figure)
    assert figure.axes[0].get_xlim() == (0.5, 2.5)
    (record,) = caplog.records
    assert "fonts-noto-cjk" in record.getMessage()


@pytest.mark.usefixtures("no_chinese_font")
@pytest.mark.parametrize(
    "word", ["cost in $", "$a$ and $\\frac", "100%_done^2", "tab\there", "\x00"]
)
def test_any_name_can_be_drawn(tmp_path: Path, word: str) -> None:
    shown = words(draw(tmp_path / "a.png", word))
    assert word in shown or any("[U+00" in text for text in shown)


def test_an_installed_font_draws_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that was installed after matplotlib made its list."""
    path = write_font(tmp_path / "wqy-test.ttf", "WenQuanYi Test", "中文")
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [
        font for font in font_manager.fontManager.ttflist if not fonts._CJK_FONTS.search(font.name)
    ])  # fmt: skip
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(path)])
    fonts._cjk_family.cache_clear()
    try:
        figure = draw(tmp_path / "a.png", "中文 run")
        assert words(draw(tmp_path / "b.png", "中国")) >= {"中[U+56FD]"}
    finally:
        fonts._cjk_family.cache_clear()
    assert {"中文 run", "b"} <= words(figure)
    for text in figure.findobj(Text):
        assert "中" not in text.get_text() or "WenQuanYi Test" in text.get_fontfamily()


def write_font(path: Path, family: str, characters: str) -> Path:
    """Makes a font whose characters are black squares."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 800), (800, 800), (800, 0)):
        pen.lineTo(corner)
    pen.closePath()
    names = {ord(c): f"uni{ord(c):04X}" for c in characters}
    order = [".notdef", *names.values()]
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(order)
    font.setupCharacterMap(names)
    square = pen.glyph()
    font.setupGlyf(dict.fromkeys(order, square))
    font.setupHorizontalMetrics(dict.fromkeys(order, (1000, 0)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": family, "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(path)
    return path


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (-0.0, "0"), (12500, "12,500"), (1234567, "1,234,567"), (0.1 + 0.2, "0.3"),
        (-2, "−2"), (5e-7, "5e−7"), (1e-5, "1e−5"), (2.5e12, "2.5e12"), (1.00001, "1.00001"),
    ],
)  # fmt: skip
def test_numbers(value: float, text: str) -> None:
    assert format_number(value) == text


@pytest.mark.parametrize("base", [None, 2, 10])
def test_axes_show_plain_numbers(tmp_path: Path, base: int | None) -> None:
    with picture(tmp_path / "a.png", 6, 4) as figure:
        axes = figure.add_subplot()
        axes.plot([1, 40_000], [1, 3_000_000])
        if base:
            axes.set_yscale("log", base=base)
    labels = [text.get_text() for text in axes.get_yticklabels() if text.get_text()]
    assert any(re.fullmatch(r"\d,\d{3},\d{3}|\d\d\d,\d{3}", label) for label in labels)
    assert not any("$" in label or "^" in label for label in labels)
    assert axes.yaxis.get_offset_text().get_text() == ""


@pytest.mark.parametrize("last", [1, 2, 7, 123_456])
def test_counts_have_no_halves(tmp_path: Path, last: int) -> None:
    with picture(tmp_path / "a.png", 6, 4) as figure:
        axes = figure.add_subplot()
        axes.plot(range(1, last + 1), range(last), "o")
        count_axis(axes)
    assert all(tick == int(tick) for tick in axes.get_xticks())
    assert axes.get_xlabel() == "optimizer step"


@pytest.mark.parametrize("place", ["above", "beside", "below"])
def test_a_legend_hides_no_data(tmp_path: Path, place: str) -> None:
    put = {
        "above": lambda: legend_above(figure, axes),
        "beside": lambda: legend_beside(figure, axes),
        "below": lambda: legend_below(axes),
    }[place]
    with picture(tmp_path / "a.png", 6, 4) as figure:
        axes = figure.add_subplot()
        put()
        assert legends(figure) == []
        axes.plot([1, 2], [1, 2], label="a line with a long name")
        axes.plot([1, 2], [2, 2], label="another")
        axes.set_xlabel("x")
        put()
    (legend,) = legends(figure)
    around = (
        axes.get_tightbbox(for_layout_only=True) if place != "below" else axes.xaxis.get_tightbbox()
    )
    assert not legend.get_window_extent().overlaps(around)
    assert not legend.get_window_extent().overlaps(axes.get_window_extent())
    assert figure.bbox.containsx(legend.get_window_extent().x1)
    assert figure.bbox.containsy(legend.get_window_extent().y0)


def legends(figure: Any) -> list[Any]:
    return figure.findobj(Legend)

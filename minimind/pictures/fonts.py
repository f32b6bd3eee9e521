"""Makes every word of a picture drawable: by a Chinese font where one is installed, by code points
where none is."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_BASE = "DejaVu Sans"
"""The font that matplotlib brings, with Latin, Greek, Cyrillic and mathematical characters."""
_CJK_FONTS = re.compile(
    r"Noto ?Sans ?(Mono ?)?(CJK|SC|TC|JP|KR)|Source ?Han|WenQuanYi|wqy|Ya ?Hei|msyh"
    r"|Sim ?Hei|Sim ?Sun|Ping ?Fang|Hiragino|Hei ?ti|Song ?ti|Deng ?Xian|AR ?PL|LXGW|Sarasa"
    r"|Droid ?Sans ?Fallback|Arial ?Unicode|Uni ?font|Noto ?Serif ?(CJK|SC|TC)",
    re.IGNORECASE,
)
"""Families and files that hold Chinese characters, on Linux, macOS and Windows."""


def make_drawable(figure: Any, axes: Iterable[Any]) -> None:
    """Sets the words of `figure`, and the tick labels of `axes` (each an Axis), in fonts that have
    their characters, and replaces a character that no font has, such as 基 by [U+57FA]."""
    from matplotlib.text import Text

    for axis in axes:
        labels = [label.get_text() for label in axis.get_ticklabels()]
        if any(_missing(label, (_BASE,)) for label in labels):
            limits = axis.get_view_interval()
            axis.set_ticks(axis.get_ticklocs(), [drawable(label) for label in labels])
            axis.set_view_interval(*limits, ignore=True)
            axis.set_tick_params(labelfontfamily=list(_families("".join(labels))))
    for text in figure.findobj(Text):
        if _missing(text.get_text(), (_BASE,)):
            text.set_fontfamily(list(_families(text.get_text())))
            text.set_text(drawable(text.get_text()))


def drawable(text: str) -> str:
    """Gives `text` with the code points of characters that no installed font has, which are logged
    once."""
    missing = _missing(text, _families(text))
    if not missing:
        return text
    _log_missing_once()
    return "".join(f"[U+{ord(c):04X}]" if c in missing else c for c in text)


@functools.cache
def _log_missing_once() -> None:
    logger.warning(
        "Pictures show some characters by their code points, such as [U+4E2D], because no font has "
        "them. Install one (on Debian and Ubuntu: apt install fonts-noto-cjk)."
    )


def _families(text: str) -> tuple[str, ...]:
    """Gives the fonts to draw `text` with, in the order in which they are asked for a character."""
    more = _cjk_family() if _missing(text, (_BASE,)) else None
    return (_BASE, more) if more else (_BASE,)


def _missing(text: str, families: Iterable[str]) -> set[str]:
    """Finds the characters of `text` that none of the fonts has."""
    # matplotlib begins a new line at \n and asks no font for it.
    found = {c for c in text if c != "\n" and not " " <= c <= "~"}
    for family in families if found else ():
        found -= {c for c in found if ord(c) in _characters(family)}
    return found


@functools.cache
def _characters(family: str) -> frozenset[int]:
    from matplotlib.font_manager import findfont
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(findfont(family)).get_charmap())


@functools.cache
def _cjk_family() -> str | None:
    """Finds an installed font with Chinese characters."""
    from matplotlib.font_manager import findSystemFonts, fontManager

    def known() -> Iterable[str]:
        names = sorted({font.name for font in fontManager.ttflist if _CJK_FONTS.search(font.name)})
        # Simplified Chinese forms come first, and sans serif, as the base font is.
        return sorted(names, key=lambda name: (not re.search(r"SC\b|Hei", name), "Serif" in name))

    if not any(known()):
        # matplotlib's list is kept between processes: it may be older than the font.
        for path in findSystemFonts():
            if _CJK_FONTS.search(Path(path).stem):
                fontManager.addfont(path)
    return next((name for name in known() if ord("中") in _characters(name)), None)

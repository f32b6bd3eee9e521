"""Adapts the guide's pages where MkDocs builds them into a site."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

from latex2mathml.converter import convert

_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)


def on_page_content(html: str, **_: Any) -> str:
    """Turns formulas into MathML, which browsers show without a script."""
    return _FORMULA.sub(_to_mathml, html)


def on_page_context(context: dict[str, Any], page: Any, config: Any, **_: Any) -> dict[str, Any]:
    """Gives the theme the language of each page, for its own words and for screen readers."""
    config.theme["language"] = "zh" if page.url.startswith("zh/") else "en"
    return context


def _to_mathml(found: re.Match[str]) -> str:
    display = "block" if found["tag"] == "div" else "inline"
    return convert(unescape(found["tex"]), display=display)

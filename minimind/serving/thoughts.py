"""Decides where in an answer its thoughts stand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from minimind.inference.answer_parser import END_THINK, THINK, Content, Part, Reasoning

Place = Literal["apart", "text", "nowhere"]
"""In a separate field, in the text within their tags, or left out."""


class Thoughts:
    """Puts the parts of one answer, as they arrive, where a client wants them."""

    def __init__(self, place: Place) -> None:
        self._place: Place = place
        self._is_open = False

    def put(self, parts: Sequence[Part]) -> list[Part]:
        if self._place == "apart":
            return list(parts)
        found: list[Part] = []
        for part in parts:
            if isinstance(part, Reasoning):
                if self._place == "nowhere":
                    continue
                part = Content(part.text if self._is_open else f"{THINK}\n{part.text}")
                self._is_open = True
            elif self._is_open:
                found.append(Content(f"\n{END_THINK}\n\n"))
                self._is_open = False
            found.append(part)
        return found

"""Decides where an answer shows the model's thoughts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from minimind.config.tags import END_THINK, THINK
from minimind.inference.answer_parser import Content, Part, Reasoning

ThoughtFormat = Literal["apart", "text", "nowhere"]
"""apart: in a field of their own; text: in the text, inside their tags; nowhere: left out."""


class Thoughts:
    """Puts the thoughts in an answer's parts, as they arrive, where the client wants them."""

    def __init__(self, format: ThoughtFormat) -> None:
        self._format: ThoughtFormat = format
        self._is_open = False

    def put(self, parts: Sequence[Part]) -> list[Part]:
        if self._format == "apart":
            return list(parts)
        found: list[Part] = []
        for part in parts:
            if isinstance(part, Reasoning):
                if self._format == "nowhere":
                    continue
                part = Content(part.text if self._is_open else f"{THINK}\n{part.text}")
                self._is_open = True
            elif self._is_open:
                found.append(Content(f"\n{END_THINK}\n\n"))
                self._is_open = False
            found.append(part)
        return found

"""Cuts a long text where byte-level BPE cuts it anyway."""

from __future__ import annotations

import re

MAX_PIECE_CHARS = 1 << 18
"""A text is encoded in pieces of at most this many characters, since encoding needs some hundred
bytes of memory per character."""
_SEARCH_SHARE = 8

_BEFORE_SPACE = re.compile(r"(?<=\S)(?=\s)")


def split_text(text: str, max_chars: int = MAX_PIECE_CHARS) -> list[str]:
    """Splits `text` into pieces of at most `max_chars` characters whose concatenation is `text`.

    GPT-2's pattern always splits between a visible character and white space, so a cut there
    changes no token. If the last eighth of a piece has no such place, the piece is cut at its end;
    the tokens around that cut may differ from those of the whole text, but not its bytes.
    """
    pieces = []
    start = 0
    while len(text) - start > max_chars:
        end = start + max_chars
        window_start = end - max_chars // _SEARCH_SHARE
        places = [match.start() for match in _BEFORE_SPACE.finditer(text, window_start, end)]
        if places and places[-1] > start:
            end = places[-1]
        pieces.append(text[start:end])
        start = end
    pieces.append(text[start:])
    return pieces

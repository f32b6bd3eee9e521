"""Reads dialogues in one text, each part after the name of its speaker: as Anthropic's hh-rlhf and
BELLE write them."""

from __future__ import annotations

import re
from typing import Any

from minimind.data.jsonl import RowProblem

_APART = re.compile(r"\n\n(Human|Assistant): ?")
_BY_LINES = re.compile(r"\n+(Human|Assistant)[:：] ?")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_OPEN = re.compile(r"\s*Human[:：].*\n\s*Assistant[:：]\s*", re.DOTALL)


def is_open_transcript(text: str) -> bool:
    """Tells whether the text is a dialogue that an assistant is to continue, and not one text of
    the user."""
    return text.startswith("\n\nHuman:") or _OPEN.fullmatch(text) is not None


def read_transcript(text: str, what: str) -> list[dict[str, Any]]:
    """Gives the turns of a dialogue. Raises RowProblem where the text is not one; `what` names
    it."""
    text = f"\n\n{text.lstrip()}"
    before, *parts = (_APART if _APART.search(text, 2) else _BY_LINES).split(text)
    if before.strip() or not parts:
        raise RowProblem(
            f'{what} is an answer without its prompt: give the row a "prompt", or write a '
            "dialogue of Human: and Assistant: parts"
        )
    return [
        {"role": _ROLES[speaker], "content": said.strip()}
        for speaker, said in zip(parts[::2], parts[1::2], strict=True)
    ]


def read_open_transcript(text: str, what: str) -> list[dict[str, Any]]:
    """Gives the turns of a dialogue up to the missing answer. Raises RowProblem."""
    turns = read_transcript(text, what)
    return turns[:-1] if turns[-1] == {"role": "assistant", "content": ""} else turns

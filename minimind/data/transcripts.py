"""Reads dialogues written as one text, each part after its speaker's name, as in Anthropic's
hh-rlhf and BELLE."""

from __future__ import annotations

import re
from typing import Any

from minimind.data.jsonl import RowProblem

_APART = re.compile(r"\n\n(Human|Assistant): ?")
_BY_LINES = re.compile(r"\n+(Human|Assistant)[:：] ?")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_OPEN = re.compile(r"\s*Human[:：].*\n\s*Assistant[:：]\s*", re.DOTALL)


def is_open_transcript(text: str) -> bool:
    """Tells whether the text is a dialogue that the assistant is to continue, rather than one text
    by the user."""
    return text.startswith("\n\nHuman:") or _OPEN.fullmatch(text) is not None


def read_transcript(text: str, what: str) -> list[dict[str, Any]]:
    """Gives the turns of a dialogue. Raises RowProblem, which calls the text `what`, where it is
    none."""
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
    """Gives the turns of a dialogue, without an empty last answer. Raises RowProblem."""
    turns = read_transcript(text, what)
    return turns[:-1] if turns[-1] == {"role": "assistant", "content": ""} else turns

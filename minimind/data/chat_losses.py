"""Finds the parts of a conversation that are missing from the text a chat template renders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minimind.config.tags import END_THINK, THINK
from minimind.errors import DataError

REASONING_LEFT_OUT = "reasoning that the chat template leaves out"


def find_losses(messages: Sequence[Mapping[str, Any]], text: str, origin: str) -> list[str]:
    """Gives descriptions of the missing parts that a template may leave out, as many do with the
    reasoning of earlier turns. Raises DataError for any other missing part; `origin` names the
    tokenizer in the message."""
    losses = []
    at = 0
    for number, message in enumerate(messages, start=1):
        said = message.get("content")
        thought = message.get("reasoning_content")
        if not isinstance(said, str):
            said = ""
        if message["role"] == "assistant" and thought is None and END_THINK in said:
            thought, _, said = said.partition(END_THINK)
            thought = thought.split(THINK, 1)[-1]
        if thought and _find(text, thought.strip(), at) < 0:
            losses.append(REASONING_LEFT_OUT)
        found = _find(text, said.strip(), at)
        names = [call.get("function", call)["name"] for call in message.get("tool_calls") or ()]
        if found < 0 or any(_find(text, name, at) < 0 for name in names):
            what = "text" if found < 0 else "tool calls"
            raise DataError(
                f"the chat template of {origin} does not show the {what} of turn {number} "
                f"({message['role']}): leave the turn out of the data, or use a tokenizer whose "
                "template does"
            )
        at = max(at, found)
    return losses


def _find(text: str, part: str, at: int) -> int:
    """Gives the position of `part` in `text`, from `at` on if it occurs there; negative if it does
    not occur."""
    found = text.find(part, at)
    return text.find(part) if found < 0 else found

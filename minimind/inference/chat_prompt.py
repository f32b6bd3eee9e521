"""Turns a conversation into the tokens of a prompt. It needs none of the server's packages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from minimind.data.chat_encoding import Chat, ChatEncoder
from minimind.data.tokenizer import Tokenizer
from minimind.errors import DataError
from minimind.inference.answer_parser import opens_reasoning

_TAIL = 32
"""The last tokens of a prompt that are searched; all that the template writes after the last turn
fits in them."""


_encoder = lru_cache(maxsize=8)(ChatEncoder)


class PromptTooLongError(DataError):
    """Reports a conversation that has more tokens than were allowed."""

    def __init__(self, least_tokens: int) -> None:
        super().__init__(f"the conversation has at least {least_tokens} tokens")
        self.least_tokens = least_tokens


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    ids: list[int]
    in_reasoning: bool
    """True where the answer begins inside a thinking block."""


def chat_prompt(
    tokenizer: Tokenizer,
    chat: Chat,
    enable_thinking: bool,
    *,
    opens_turn: bool = True,
    continues: bool = False,
    options: Mapping[str, Any] | None = None,
    max_tokens: int | None = None,
) -> ChatPrompt:
    """Gives the tokens of a conversation up to where the assistant's next turn begins
    (`opens_turn`), or to the end of its unfinished last turn (`continues`). `options` are variables
    of the template. Raises DataError, and PromptTooLongError where the text shows, before it is
    encoded, that it has more than `max_tokens` tokens."""
    encoder = _encoder(tokenizer)
    if continues:
        spans = encoder.unfinished_spans(chat, options)
    else:
        spans = encoder.prompt_spans(chat, enable_thinking, opens_turn=opens_turn, options=options)
    if max_tokens is not None:
        least_tokens = sum(tokenizer.least_tokens(text) for text, _ in spans)
        if least_tokens > max_tokens:
            raise PromptTooLongError(least_tokens)
    (sample,) = encoder.encode([spans])
    ids = sample.ids.tolist()
    tail = ids if continues else ids[-_TAIL:]
    ends = [at for at, id in enumerate(tail) if id == tokenizer.eos_id]
    opening = tail[ends[-1] + 1 :] if ends else tail
    return ChatPrompt(ids, opens_reasoning(tokenizer.decode(opening)))

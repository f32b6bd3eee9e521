"""A conversation as the tokens before an answer; needs none of the server's packages."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from minimind.data.chat_encoding import Chat, ChatEncoder
from minimind.data.tokenizer import Tokenizer
from minimind.serving.answer_parser import opens_reasoning

_TAIL = 32
"""Tokens at a prompt's end that hold all the template writes after the last turn."""


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    ids: list[int]
    in_reasoning: bool
    """The answer begins inside a thinking block."""


def chat_prompt(tokenizer: Tokenizer, chat: Chat, enable_thinking: bool) -> ChatPrompt:
    """The conversation up to where the assistant's next turn begins. Raises DataError."""
    ids = _encoder(tokenizer).prompt_ids(chat, enable_thinking)
    tail = ids[-_TAIL:]
    ends = [at for at, id in enumerate(tail) if id == tokenizer.eos_id]
    opening = tail[ends[-1] + 1 :] if ends else tail
    return ChatPrompt(ids, opens_reasoning(tokenizer.decode(opening)))


@lru_cache(maxsize=8)
def _encoder(tokenizer: Tokenizer) -> ChatEncoder:
    return ChatEncoder(tokenizer)

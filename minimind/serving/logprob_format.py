"""Log-probabilities in OpenAI's two forms."""

from __future__ import annotations

import math
from collections.abc import Iterable

from minimind.data.tokenizer import Tokenizer
from minimind.inference.logprobs import TokenLogprob
from minimind.serving.response_schemas import (
    ChatLogprobs,
    ChosenToken,
    LikelyToken,
    TextLogprobs,
)

_LEAST = -9999.0
"""What OpenAI gives for a token without any probability: JSON has no infinity."""


def chat_logprobs(tokenizer: Tokenizer, entries: Iterable[TokenLogprob]) -> ChatLogprobs:
    chosen = []
    for entry in entries:
        top = [_likely(tokenizer, id, logprob) for id, logprob in entry.top]
        token = _likely(tokenizer, entry.id, entry.logprob)
        chosen.append(ChosenToken(**token.model_dump(), top_logprobs=top))
    return ChatLogprobs(content=chosen)


def text_logprobs(
    tokenizer: Tokenizer, entries: Iterable[TokenLogprob], first_offset: int = 0
) -> TextLogprobs:
    """`first_offset`: characters of the text before these tokens."""
    found = TextLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
    offset = first_offset
    for entry in entries:
        token = _text(tokenizer, entry.id)
        found.tokens.append(token)
        found.token_logprobs.append(_finite(entry.logprob))
        found.top_logprobs.append({_text(tokenizer, id): _finite(p) for id, p in entry.top})
        found.text_offset.append(offset)
        offset += len(token)
    return found


def _likely(tokenizer: Tokenizer, id: int, logprob: float) -> LikelyToken:
    raw = tokenizer.token_bytes([id], skip_special=False)
    return LikelyToken(token=_text(tokenizer, id), bytes=list(raw), logprob=_finite(logprob))


def _text(tokenizer: Tokenizer, id: int) -> str:
    return tokenizer.decode([id], skip_special=False)


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else _LEAST

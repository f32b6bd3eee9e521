"""Writes log-probabilities in the forms of OpenAI's chat and text completions."""

from __future__ import annotations

import math
from collections.abc import Iterable

from minimind.data.tokenizer import Tokenizer
from minimind.inference.logprobs import TokenLogprob
from minimind.serving.response_schemas import ChatLogprobs, ChosenToken, LikelyToken, TextLogprobs

_LEAST = -9999.0
"""OpenAI's value for a token of probability 0, since JSON has no infinity."""


def chat_logprobs(tokenizer: Tokenizer, entries: Iterable[TokenLogprob]) -> ChatLogprobs:
    chosen = []
    for entry in entries:
        top = [_likely(tokenizer, id, logprob) for id, logprob in entry.top]
        token = _likely(tokenizer, entry.id, entry.logprob)
        chosen.append(ChosenToken(**token.model_dump(), top_logprobs=top))
    return ChatLogprobs(content=chosen)


class TextLogprobWriter:
    """Writes the log-probabilities of one text, which may come in several pieces."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._decoder = tokenizer, tokenizer.stream_decoder()
        self._offset = 0

    def write(self, entries: Iterable[TokenLogprob]) -> TextLogprobs:
        """Writes one piece. A token's offset is the number of whole characters in the text before
        it. The text's first token has no log-probability, since it follows nothing."""
        found = TextLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
        for entry in entries:
            token = self._name(entry.id)
            found.tokens.append(token)
            found.text_offset.append(self._offset)
            self._offset += len(self._decoder.push(entry.id))
            if math.isnan(entry.logprob):
                found.token_logprobs.append(None)
                found.top_logprobs.append(None)
                continue
            # The chosen token is always among them, as in OpenAI's answers.
            top = {self._name(id): _finite(logprob) for id, logprob in entry.top}
            found.token_logprobs.append(_finite(entry.logprob))
            found.top_logprobs.append({token: _finite(entry.logprob)} | top)
        return found

    def _name(self, id: int) -> str:
        """Gives a token's text, or its bytes if they are not whole characters, so that different
        tokens have different names."""
        raw = self._tokenizer.token_bytes([id], skip_special=False)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _likely(tokenizer: Tokenizer, id: int, logprob: float) -> LikelyToken:
    raw = tokenizer.token_bytes([id], skip_special=False)
    text = tokenizer.decode([id], skip_special=False)
    return LikelyToken(token=text, bytes=list(raw), logprob=_finite(logprob))


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else _LEAST

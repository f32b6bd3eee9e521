"""Tries to compile a grammar in a process that is killed after a time limit: llguidance bounds most
but not all of a grammar's cost, and a running call cannot be stopped."""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

_MEMORY_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Presents a tokenizer in the form that llguidance reads."""

    eos_token_id: int
    bos_token_id: int | None
    special_token_ids: tuple[int, ...]
    """The ids that only a grammar can name: a text that spells such a token is encoded as other
    tokens."""
    tokens: tuple[bytes, ...]
    encode: Callable[[str], list[int]] | None = field(default=None, compare=False)
    """Encodes forced text as tokens. Whether a grammar compiles does not depend on it."""

    def __call__(self, text: str) -> list[int]:
        if self.encode is not None:
            return self.encode(text)
        return [self.tokens.index(bytes([byte])) for byte in text.encode()]


def compile_text(tokens: Any, text: str) -> Any:
    """Compiles a grammar and gives its matcher, whose error says what is wrong with the grammar."""
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(verbose_errors=False)
    compiled = LLMatcher(tokens, text, log_level=0, limits=limits)
    # That no text fits a grammar is sometimes found only when its first token is computed.
    if not compiled.is_error():
        compiled.compute_bitmask()
    return compiled


def problem_of(given: tuple[Vocabulary, str]) -> str:
    """Gives what is wrong with a grammar, or ""."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, resource.RLIM_INFINITY))
    vocabulary, text = given
    return compile_text(_read_once(vocabulary), text).get_error()


def read_vocabulary(vocabulary: Vocabulary) -> Any:
    from llguidance import LLTokenizer, TokenizerWrapper

    slices = LLTokenizer.json_slices()
    wrapped = TokenizerWrapper(vocabulary)
    return LLTokenizer(wrapped, n_vocab=len(vocabulary.tokens), slices=slices)


_read_once = lru_cache(maxsize=1)(read_vocabulary)

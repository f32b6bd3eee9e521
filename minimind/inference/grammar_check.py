"""Compiles a grammar to see whether it can be, in a process that is ended if it takes too long:
llguidance bounds most of what a grammar costs, but not all, and a call of it cannot be stopped."""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

_MEMORY_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A tokenizer as llguidance reads one."""

    eos_token_id: int
    bos_token_id: int | None
    special_token_ids: tuple[int, ...]
    """These stand for themselves alone: text that spells them is other tokens."""
    tokens: tuple[bytes, ...]
    encode: Callable[[str], list[int]] | None = field(default=None, compare=False)
    """By which forced text becomes tokens; whether a grammar compiles does not depend on it."""

    def __call__(self, text: str) -> list[int]:
        if self.encode is not None:
            return self.encode(text)
        return [self.tokens.index(bytes([byte])) for byte in text.encode()]


def compile_text(tokens: Any, text: str) -> Any:
    """The matcher of a grammar; its error says what is wrong with it."""
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(verbose_errors=False)
    compiled = LLMatcher(tokens, text, log_level=0, limits=limits)
    # Some that no text fits are only found out by looking for the first token.
    if not compiled.is_error():
        compiled.compute_bitmask()
    return compiled


def problem_of(given: tuple[Vocabulary, str]) -> str:
    """What is wrong with a grammar; empty: nothing."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, resource.RLIM_INFINITY))
    vocabulary, text = given
    return compile_text(_read_once(vocabulary), text).get_error()


def read_vocabulary(vocabulary: Vocabulary) -> Any:
    from llguidance import LLTokenizer, TokenizerWrapper

    slices = LLTokenizer.json_slices()
    wrapped = TokenizerWrapper(vocabulary)
    return LLTokenizer(wrapped, n_vocab=len(vocabulary.tokens), slices=slices)


_read_once = lru_cache(maxsize=1)(read_vocabulary)

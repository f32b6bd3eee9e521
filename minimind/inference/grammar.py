"""Compiles grammars, which constrain a model's text, with llguidance for one tokenizer."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from minimind.data.tokenizer import Tokenizer
from minimind.errors import ConfigError
from minimind.inference.grammar_check import Vocabulary, compile_text, problem_of, read_vocabulary
from minimind.runtime.function_pool import Call, FunctionPool

if TYPE_CHECKING:
    from llguidance import LLMatcher

MAX_CHARACTERS = 1 << 16
"""The most characters of a grammar with everything around it; a longer one is refused before any
work is done on it."""
_KEPT = 64
"""The number of grammars, the most recently used, that stay compiled."""
_CHECK = f"{problem_of.__module__}:{problem_of.__name__}"
_FIRST_CHECK_S = 20.0
"""The time limit of the first check, in which the process starts and imports llguidance."""


class Grammar:
    """Holds a compiled grammar, which any number of sequences may use at once."""

    def __init__(self, compiled: LLMatcher) -> None:
        self._compiled = compiled

    def matcher(self) -> LLMatcher:
        """Gives a matcher for a new sequence, at the start of the grammar."""
        return self._compiled.deep_copy()


class GrammarCompiler:
    """Compiles grammars for a tokenizer and a model of `vocab_size` tokens. Several threads may
    call it; they wait for one another without holding Python's lock."""

    def __init__(
        self, tokenizer: Tokenizer, vocab_size: int, *, limit_s: float | None = None
    ) -> None:
        """Give `limit_s` where grammars come from strangers: each is then first compiled in a
        separate process, which is killed after that many seconds."""
        self._tokenizer, self._vocab_size, self._limit_s = tokenizer, vocab_size, limit_s
        self._tokens: Any = None
        self._pool: FunctionPool | None = None
        self._kept: OrderedDict[str, Grammar] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, text: str) -> Grammar:
        """Compiles the grammar `text` (see inference/grammar_texts.py). Raises ConfigError with
        llguidance's message for a grammar that is wrong, unsupported or too costly."""
        if len(text) > MAX_CHARACTERS:
            raise ConfigError(
                f"the grammar or schema has {len(text)} characters; at most {MAX_CHARACTERS} are "
                "taken"
            )
        with self._lock:
            if text not in self._kept:
                self._kept[text] = self._compile(text)
            self._kept.move_to_end(text)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            return self._kept[text]

    def _compile(self, text: str) -> Grammar:
        if self._limit_s is not None:
            self._check(text, self._limit_s)
        if self._tokens is None:
            self._tokens = read_vocabulary(self._vocabulary(self._tokenizer.encode))
        compiled = compile_text(self._tokens, text)
        if compiled.is_error():
            raise ConfigError(_message(compiled.get_error()))
        return Grammar(compiled)

    def _check(self, text: str, limit_s: float) -> None:
        if self._pool is None:
            self._pool = FunctionPool(
                [_CHECK],
                num_workers=1,
                timeout_s=limit_s,
                shipped={},
                first_call_s=_FIRST_CHECK_S,
            )
        (outcome,) = self._pool.call([Call(_CHECK, (self._vocabulary(), text))])
        if outcome.failure is not None:
            took = {"slow": f"it takes more than {limit_s:g} s to compile"}
            raise ConfigError(took.get(outcome.failure.kind, outcome.failure.text))
        if outcome.value:
            raise ConfigError(_message(outcome.value))

    def _vocabulary(self, encode: Callable[[str], list[int]] | None = None) -> Vocabulary:
        known, ids = self._tokenizer, range(self._vocab_size)
        return Vocabulary(
            known.eos_id,
            known.bos_id,
            tuple(sorted(known.added_ids.values())),
            tuple(known.token_bytes([id], skip_special=False) for id in ids),
            encode,
        )


def _message(error: str) -> str:
    # The rest of the message is about options that no client has.
    words = error.replace("<non-verbose/>", "").partition(". Enable '")[0].strip()
    return "no text fits it" if words == "NoExtensionBias" else words

"""Grammars that hold a model's text to a form, compiled by llguidance for one tokenizer."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from minimind.data.tokenizer import Tokenizer
from minimind.errors import ConfigError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MAX_CHARACTERS = 1 << 17
"""Of a grammar. A longer one is refused before it costs anything; what shorter ones may cost,
llguidance bounds itself (a second or two, a hundred megabytes)."""
_KEPT = 64
"""Grammars compiled last, which cost nothing when they come again."""


class Grammar:
    """One that was compiled, for any number of sequences at once."""

    def __init__(self, compiled: LLMatcher) -> None:
        self._compiled = compiled

    def matcher(self) -> LLMatcher:
        """A new sequence's."""
        return self._compiled.deep_copy()


class _Vocabulary:
    """A tokenizer as llguidance reads one. Added tokens, the tags of thinking and calls among them,
    stand for themselves alone: text that spells them is other tokens."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self.eos_token_id, self.bos_token_id = tokenizer.eos_id, tokenizer.bos_id
        self.special_token_ids = sorted(tokenizer.added_ids.values())
        ids = range(vocab_size)
        self.tokens = [tokenizer.token_bytes([id], skip_special=False) for id in ids]
        self._encode = tokenizer.encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)


class GrammarCompiler:
    """Compiles grammars for a tokenizer and a model of `vocab_size` tokens; may be called from
    several threads, which wait for each other, but not while they hold Python's lock."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._tokens: LLTokenizer | None = None
        self._kept: OrderedDict[str, Grammar] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, text: str) -> Grammar:
        """`text` as of inference/grammar_texts.py. Raises ConfigError with llguidance's words for
        one that is wrong, not supported or too large."""
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
        from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

        if self._tokens is None:
            vocabulary = TokenizerWrapper(_Vocabulary(self._tokenizer, self._vocab_size))
            slices = LLTokenizer.json_slices()
            self._tokens = LLTokenizer(vocabulary, n_vocab=self._vocab_size, slices=slices)
        limits = LLParserLimits(verbose_errors=False)
        compiled = LLMatcher(self._tokens, text, log_level=0, limits=limits)
        # Some that no text fits are only found out by looking for the first token.
        if not compiled.is_error():
            compiled.compute_bitmask()
        if compiled.is_error():
            raise ConfigError(_message(compiled.get_error()))
        return Grammar(compiled)


def _message(error: str) -> str:
    words = error.replace("<non-verbose/>", "").strip()
    return "no text fits it" if words == "NoExtensionBias" else words

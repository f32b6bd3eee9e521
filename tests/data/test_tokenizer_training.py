from __future__ import annotations

from pathlib import Path

import pytest

from minimind.data.tokenizer_training import (
    MIN_VOCAB_SIZE,
    RESERVED_TOKENS,
    SPECIAL_TOKENS,
    train_tokenizer,
)
from minimind.errors import ConfigError

TEXTS = ["the river of the town", "塔恩的房子是蓝色的", "the town and the river"] * 20


def test_reserved_ids() -> None:
    tokenizer = train_tokenizer(TEXTS, 330)
    ids = [tokenizer.encode_rendered(name) for name in RESERVED_TOKENS]
    assert ids == [[i] for i in range(36)]
    assert RESERVED_TOKENS[:3] == ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    assert RESERVED_TOKENS[21:27] == (
        "<tool_call>",
        "</tool_call>",
        "<tool_response>",
        "</tool_response>",
        "<think>",
        "</think>",
    )
    assert RESERVED_TOKENS[27] == "<|buffer1|>"
    assert RESERVED_TOKENS[35] == "<|buffer9|>"
    assert tokenizer.special_ids == frozenset(range(21))
    assert len(SPECIAL_TOKENS) == 21


def test_training_twice_gives_the_same_tokenizer() -> None:
    first, second = train_tokenizer(TEXTS, 320), train_tokenizer(iter(TEXTS), 320)
    assert first.fingerprint == second.fingerprint
    assert first.vocab_size == 320


def test_the_smallest_vocabulary_still_writes_everything() -> None:
    tokenizer = train_tokenizer(TEXTS, MIN_VOCAB_SIZE)
    assert tokenizer.vocab_size == MIN_VOCAB_SIZE
    assert len(tokenizer.encode("塔")) == 3
    assert tokenizer.decode(tokenizer.encode("鑫\x00\U0001f600")) == "鑫\x00\U0001f600"
    with pytest.raises(ConfigError, match=f"at least {MIN_VOCAB_SIZE}"):
        train_tokenizer(TEXTS, MIN_VOCAB_SIZE - 1)


def test_text_that_spells_reserved_tokens_builds_no_merge_of_them() -> None:
    tokenizer = train_tokenizer(["<|im_end|><think>ab</think>"] * 200, 400)
    for name in RESERVED_TOKENS:
        assert min(tokenizer.encode(name)) >= len(RESERVED_TOKENS)


def test_a_bound_on_tokens() -> None:
    def longest(bound: int | None) -> int:
        tokenizer = train_tokenizer(TEXTS, 400, max_token_bytes=bound)
        ids = range(len(RESERVED_TOKENS), tokenizer.vocab_size)
        return max(len(tokenizer.token_bytes([i])) for i in ids)

    assert longest(None) > 5 >= longest(5)


def test_no_prefix_space_and_no_normaliser(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, 400)
    for text in ("town", " town", "e\u0301", "ﬁ", "Ａ"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("town") != tokenizer.encode(" town")

"""Builds the tokenizers of the library `tokenizers` that a tokenizer.json describes, and checks
them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tokenizers

from minimind.errors import DataError

TOKENIZER_FILE = "tokenizer.json"


def byte_alphabet() -> list[str]:
    """Gives the character with which byte-level BPE writes each byte: the byte's own where that is
    printable Latin-1, else the next free one from U+0100 on (Radford et al. 2019, GPT-2)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    free = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(free)) for byte in range(256)]


def build_bpe(
    spec: dict[str, Any], recognised: set[str], origin: str, post_processor: Any = None
) -> tokenizers.Tokenizer:
    """Builds a tokenizer with the model of `spec` that recognises only the added tokens in
    `recognised`."""
    model = spec.get("model") or {}
    vocab = model.get("vocab")
    is_byte_level = isinstance(vocab, dict) and all(char in vocab for char in byte_alphabet())
    if model.get("type", "BPE") != "BPE" or not is_byte_level:
        raise DataError(
            f"{origin}: {TOKENIZER_FILE} is no byte-level BPE with all 256 bytes in its vocabulary"
        )
    added = [t for t in spec.get("added_tokens") or [] if t["content"] in recognised]
    changed = {"added_tokens": added, "truncation": None, "padding": None}
    changed["post_processor"] = post_processor
    with panics_as_errors(origin):
        try:
            return tokenizers.Tokenizer.from_str(json.dumps({**spec, **changed}))
        except Exception as error:  # tokenizers raises no narrower type
            raise DataError(f"{origin}: {TOKENIZER_FILE} cannot be loaded: {error}") from None


def added_token(id: int, content: str, *, special: bool) -> dict[str, Any]:
    """Gives an added token as tokenizer.json has it; decoding may skip a special one."""
    return {
        "id": id,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


@contextmanager
def panics_as_errors(origin: str) -> Iterator[None]:
    """Turns a panic of the library's Rust, which is no Exception and would end a program, into a
    DataError."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise DataError(f"{origin}: {TOKENIZER_FILE} cannot be used here: {error}") from None


def check_text_stays_text(plain: tokenizers.Tokenizer, added: dict[str, int], origin: str) -> None:
    """Raises DataError for a tokenizer whose merges build an added token, so that text could become
    that token."""
    for content, id in added.items():
        with panics_as_errors(origin):
            ids = plain.encode(content, add_special_tokens=False).ids
        if id in ids:
            raise DataError(
                f"{origin}: the merges of {TOKENIZER_FILE} build the added token {content!r}, so "
                "plain text could become it; train a tokenizer whose merges do not"
            )

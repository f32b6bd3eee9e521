"""Tries the parts of a downloaded tokenizer that treat text, in a worker process with limits: a
normalizer or a pattern in them may need more time or memory than there is, or end the process."""

from __future__ import annotations

import json
import math
from typing import Any

import tokenizers

from minimind.errors import DataError
from minimind.runtime.bounded_call import BoundedCallError, call_bounded, limit_memory

_MAX_GROWTH = 64
"""How many times as long a normalizer may make a text."""
_TEXTS = (
    "a" * 4096 + "!",
    "1" * 4096 + "!",
    " " * 4096 + "!",
    "!" * 4096 + "a",
    "aB1 _-'\n\t." * 400,
    "ab " * 1000 + "\n" * 1000,
    "中文字符。" * 800,
)


def check_text_parts(spec: dict[str, Any], alphabet: list[str], origin: str) -> None:
    """Raises DataError where the normalizer or pre-tokenizer of a tokenizer.json (`spec`) fails on
    short texts or does not end. `alphabet` is the vocabulary of single bytes."""
    parts = {name: spec.get(name) for name in ("normalizer", "pre_tokenizer")}
    if parts["normalizer"] is None and (parts["pre_tokenizer"] or {}).get("type") == "ByteLevel":
        return
    if (growth := _growth(parts["normalizer"])) > _MAX_GROWTH:
        raise DataError(
            f"{origin}: the normalizer of tokenizer.json may make a text {growth:,} times as long; "
            f"{_MAX_GROWTH:,} times are the most"
        )
    vocab = {char: id for id, char in enumerate(alphabet)}
    model = {"type": "BPE", "vocab": vocab, "merges": []}
    text = json.dumps({"version": "1.0", "added_tokens": [], "model": model, **parts})
    try:
        call_bounded("minimind.data.tokenizer_probe:encode_samples", text)
    except BoundedCallError as error:
        raise DataError(
            f"{origin}: the normalizer or pre_tokenizer of tokenizer.json cannot be used: {error}"
        ) from None


def encode_samples(spec: str) -> None:
    """Builds a tokenizer and encodes some texts with it, in a worker process. Raises DataError."""
    limit_memory()
    try:
        built = tokenizers.Tokenizer.from_str(spec)
        for text in _TEXTS:
            built.encode(text, add_special_tokens=False)
    except BaseException as error:  # a panic of Rust is no Exception
        raise DataError(str(error)) from None


def _growth(part: Any) -> int:
    """Gives the product of the lengths that a normalizer's Replace puts in place of a match."""
    if not isinstance(part, dict):
        return 1
    steps = part.get("normalizers")
    content = part.get("content")
    own = max(1, len(content)) if isinstance(content, str) else 1
    return own * math.prod(map(_growth, steps if isinstance(steps, list) else []))

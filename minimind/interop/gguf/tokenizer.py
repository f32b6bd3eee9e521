"""Writes a tokenizer as fields of a GGUF file, and reads it back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from minimind.config.json_file import parse_json
from minimind.data.byte_level_bpe import added_token
from minimind.data.tokenizer import Tokenizer
from minimind.errors import CheckpointError, ConfigError

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""The types of tokens. A CONTROL token is hidden in the text of an answer, a USER_DEFINED one is
not."""

_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
_PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "gpt-2": {**_BYTE_LEVEL, "use_regex": True},
    "qwen2": {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Split",
                "pattern": {"Regex": _QWEN2_SPLIT},
                "behavior": "Isolated",
                "invert": False,
            },
            {**_BYTE_LEVEL, "use_regex": False},
        ],
    },
}
"""How llama.cpp splits a text before it merges bytes, by its names (src/llama-vocab.cpp), in the
form of tokenizer.json."""
_ID_FIELDS = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
}
_HUGGING_FACE = "tokenizer.huggingface.json"
"""The field that holds tokenizer.json whole, for programs that read that."""


def to_fields(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """Gives the fields of a tokenizer, with unused tokens up to the model's `vocab_size`. Raises
    ConfigError where llama.cpp would split or merge a text otherwise, or the model's vocabulary is
    smaller."""
    tokenizer.check_fits(vocab_size)
    spec, config = tokenizer.contents()
    _check_model(spec, tokenizer.origin)
    if not _merges(spec):
        raise ConfigError(
            f"--to gguf: the tokenizer {tokenizer.origin} merges no bytes, and llama.cpp loads "
            "none without merges"
        )
    tokens, types = _list_tokens(spec, vocab_size)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in _merges(spec)]
    ids = {token: id for id, token in enumerate(tokens)}
    special = {
        field: ids[config[name]] for name, field in _ID_FIELDS.items() if config.get(name) in ids
    }
    fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _name_pre_tokenizer(spec, tokenizer.origin),
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        **special,
        # A text begins as in training: docs/decisions/bos-rule.md.
        "tokenizer.ggml.add_bos_token": tokenizer.bos_id is not None,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
        _HUGGING_FACE: json.dumps(spec, ensure_ascii=False),
    }
    if tokenizer.chat_template is not None:
        fields["tokenizer.chat_template"] = tokenizer.chat_template
    return fields


def _merges(spec: Mapping[str, Any]) -> list[Any]:
    return spec["model"].get("merges") or []


def _check_model(spec: Mapping[str, Any], origin: str) -> None:
    """Raises ConfigError for options of byte-level BPE that GGUF has no field for."""
    options = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
    for name in options:
        if spec["model"].get(name):
            raise ConfigError(
                f"--to gguf: the tokenizer {origin} has {name} {spec['model'][name]!r}, which "
                "llama.cpp does not do"
            )
    for token in spec.get("added_tokens") or []:
        for name in ("lstrip", "rstrip", "single_word"):
            if token.get(name):
                raise ConfigError(
                    f"--to gguf: the tokenizer {origin} has {name} for {token['content']!r}, which "
                    "llama.cpp does not do"
                )


def _name_pre_tokenizer(spec: Mapping[str, Any], origin: str) -> str:
    """Gives llama.cpp's name of the way in which the tokenizer splits a text. Raises ConfigError
    where there is none."""
    if spec.get("normalizer") is not None and spec["normalizer"].get("type") != "NFC":
        raise ConfigError(
            f"--to gguf: the tokenizer {origin} changes a text by {spec['normalizer']['type']!r} "
            "first, which llama.cpp does not do"
        )
    for name, known in _PRE_TOKENIZERS.items():
        if _is_same(spec.get("pre_tokenizer"), known):
            return name
    raise ConfigError(
        f"--to gguf: llama.cpp has no name for the pre_tokenizer of {origin}. Known here: "
        f"{', '.join(_PRE_TOKENIZERS)}, of which `minimind tokenizer` makes the first"
    )


def _is_same(given: Any, known: Any) -> bool:
    """Compares pre-tokenizers, but not `trim_offsets`, which changes no token."""
    if isinstance(given, dict) and isinstance(known, dict):
        names = (given.keys() | known.keys()) - {"trim_offsets"}
        return all(_is_same(given.get(name), known.get(name)) for name in names)
    if isinstance(given, list) and isinstance(known, list):
        return len(given) == len(known) and all(map(_is_same, given, known))
    return given == known


def _list_tokens(spec: Mapping[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    tokens = [f"[PAD{id}]" for id in range(vocab_size)]
    types = [UNUSED] * vocab_size
    for token, id in spec["model"]["vocab"].items():
        tokens[id], types[id] = token, NORMAL
    for added in spec.get("added_tokens") or []:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    return tokens, types


def from_fields(fields: Mapping[str, Any], path: str) -> Tokenizer:
    """Reads the tokenizer. Raises CheckpointError, which `path` begins, for one that is no
    byte-level BPE or that splits texts in an unknown way, DataError for one that cannot be used."""
    kind = fields.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise CheckpointError(
            f"{path}: a tokenizer of the kind {kind!r}; those here are byte-level BPE, 'gpt2'"
        )
    lists = ("tokens", "token_type", "merges")
    tokens, types, merges = (fields.get(f"tokenizer.ggml.{name}") or [] for name in lists)
    if not tokens or len(types) != len(tokens):
        raise CheckpointError(f"{path}: {len(tokens)} tokens with {len(types)} types")
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    for name, field in _ID_FIELDS.items():
        id = fields.get(field)
        if id is None:
            continue
        if not 0 <= id < len(tokens):
            raise CheckpointError(f"{path}: {field} is {id}, of {len(tokens)} tokens")
        config[name] = tokens[id]
    if not fields.get("tokenizer.ggml.add_bos_token", False):
        config.pop("bos_token", None)
    if template := fields.get("tokenizer.chat_template"):
        config["chat_template"] = template
    return Tokenizer(_read_spec(fields, tokens, types, merges, path), config, path)


def _read_spec(
    fields: Mapping[str, Any], tokens: list[str], types: list[int], merges: list[str], path: str
) -> dict[str, Any]:
    """Gives the content of tokenizer.json: the copy in the GGUF file if there is one, else built
    from the lists of tokens and merges."""
    if (text := fields.get(_HUGGING_FACE)) is not None:
        try:
            spec = parse_json(text)
            same = _list_tokens(spec, len(tokens)) == (tokens, types)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise CheckpointError(f"{path}: {_HUGGING_FACE} is not a tokenizer.json") from None
        if not same:
            raise CheckpointError(
                f"{path}: {_HUGGING_FACE} and tokenizer.ggml.tokens hold different tokens"
            )
        return spec
    pre = fields.get("tokenizer.ggml.pre", "default")
    if pre not in _PRE_TOKENIZERS:
        raise CheckpointError(
            f"{path}: its tokenizer splits texts by the rule {pre!r}; known: "
            f"{', '.join(_PRE_TOKENIZERS)}"
        )
    added = [
        added_token(id, tokens[id], special=type == CONTROL)
        for id, type in enumerate(types)
        if type in (CONTROL, USER_DEFINED)
    ]
    vocab = {token: id for id, token in enumerate(tokens) if types[id] != UNUSED}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": _PRE_TOKENIZERS[pre],
        "post_processor": None,
        "decoder": _PRE_TOKENIZERS["gpt-2"],
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [merge.split(" ", 1) for merge in merges],
        },
    }

"""Trains a tokenizer: byte-level BPE with the project's reserved ids."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from minimind.data.byte_level_bpe import added_token
from minimind.data.chat_template import CHAT_TEMPLATE
from minimind.data.text_pieces import split_text
from minimind.data.tokenizer import TAGS, Tokenizer
from minimind.errors import ConfigError

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|audio_start|>",
    "<|audio_end|>",
    "<|audio_pad|>",
    "<|tts_start|>",
    "<|tts_end|>",
    "<|tts_pad|>",
    "<|reserved|>",
)
"""The tokens of ids 0 to 20: pad and unknown, bos, eos, then reserved ones for other modalities."""
KEPT_TOKENS = (*TAGS, *(f"<|buffer{i}|>" for i in range(1, 10)))
"""The tokens of ids 21 to 35, which decoding keeps even where it skips special tokens."""
RESERVED_TOKENS = (*SPECIAL_TOKENS, *KEPT_TOKENS)
MIN_VOCAB_SIZE = len(RESERVED_TOKENS) + 256

_MAX_WORD_CHARS = 1024
"""Text without spaces is cut to this length for training: a merge takes time in proportion to the
length of every word that contains it."""


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    max_token_bytes: int | None = None,
    progress: bool = False,
) -> Tokenizer:
    """Learns merges from `texts`, which are read once; the same texts give the same tokenizer.

    A small corpus may give fewer than `vocab_size` tokens. `max_token_bytes` limits a token's
    length, for corpora so regular that whole sentences would become tokens. `progress` shows bars
    where stderr is a terminal. Raises ConfigError where `vocab_size` has no room for the reserved
    ids and the 256 bytes.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise ConfigError(
            f"vocab_size is {vocab_size}; it must be at least {MIN_VOCAB_SIZE}: "
            f"{len(RESERVED_TOKENS)} reserved ids and 256 bytes"
        )
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(RESERVED_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=max_token_bytes,
        # tokenizers prints blank lines where it cannot draw its bars.
        show_progress=progress and sys.stderr.isatty(),
    )
    words = (word for text in texts for word in split_text(text, _MAX_WORD_CHARS))
    bpe.train_from_iterator(words, trainer=trainer)
    spec = json.loads(bpe.to_str())
    spec["added_tokens"] = [
        added_token(id, name, special=name in SPECIAL_TOKENS)
        for id, name in enumerate(RESERVED_TOKENS)
    ]
    return Tokenizer(spec, _config(spec["added_tokens"]), "just trained")


def _config(added: list[dict[str, Any]]) -> dict[str, Any]:
    decoder = {str(one["id"]): {k: v for k, v in one.items() if k != "id"} for one in added}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "added_tokens_decoder": decoder,
        "additional_special_tokens": list(SPECIAL_TOKENS[3:]),
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 32768,
        "chat_template": CHAT_TEMPLATE,
    }

"""Writes stand-ins for results that do not exist yet, so that the steps which take them can be
resolved, checked and rehearsed by the same code as any run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

from minimind.config.model import ModelConfig
from minimind.data.tokenizer import Tokenizer
from minimind.data.tokenizer_training import train_tokenizer
from minimind.model.hf_config import CONFIG_FILE, to_hf_config
from minimind.model.state_dict import WEIGHTS_FILE, outside_shapes

_ALIGNMENT = 8
"""The header of a safetensors file is padded to a multiple of so many bytes."""


def write_model(folder: Path, config: ModelConfig, tokenizer: Tokenizer) -> None:
    """Writes a Hugging Face folder whose weights are all 0. They take no room on disk: the file is
    a header and a hole."""
    folder.mkdir(parents=True)
    values = to_hf_config(config) | {"dtype": "float32"}
    (folder / CONFIG_FILE).write_text(json.dumps(values), encoding="utf-8")
    tokenizer.save(folder)
    header, end = {}, 0
    for name, shape in outside_shapes(config).items():
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with open(folder / WEIGHTS_FILE, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def write_tokenizer(folder: Path, texts: Iterable[str], vocab_size: int) -> None:
    """Writes a tokenizer trained on a few `texts` of the data, filled up to `vocab_size` with
    tokens that no text becomes. Its tokens are about as long as those of the tokenizer that it
    stands for. Raises ConfigError where `vocab_size` is too small."""
    trained = train_tokenizer(texts, vocab_size)
    spec, config = trained.contents()
    vocabulary = spec["model"]["vocab"]
    for id in range(trained.vocab_size, vocab_size):
        vocabulary[f"stand-in-{id}"] = id
    Tokenizer(spec, config, "a stand-in").save(folder)

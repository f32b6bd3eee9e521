"""The sample data as files: made when first asked for, in the cache folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from minimind.data import sample_chat, sample_text, sample_world
from minimind.data.cache_folder import default_cache_dir
from minimind.data.sample_chat import chat_rows, preference_rows, sentence_rows
from minimind.data.sample_text import text_documents
from minimind.data.tokenizer import Tokenizer
from minimind.data.tokenizer_training import train_tokenizer
from minimind.data.training_texts import read_training_texts
from minimind.errors import ConfigError

Split = Literal["train", "val"]
MAX_SAMPLE_VOCAB = 2048
"""The text is so regular that its merges end earlier."""
_SOURCES = (sample_world, sample_text, sample_chat)
_VAL_ONE_IN = 20
"""This share of all documents and questions, chosen by their hash, is for validation alone."""


def _text_rows(seed: int) -> Iterator[tuple[dict[str, Any], list[str], bool]]:
    for text, is_held_out in text_documents(seed):
        yield {"text": text}, [text], is_held_out


SampleRows = Callable[[int], Iterator[tuple[dict[str, Any], list[str], bool]]]
"""From a seed endless (row, what must not be in both splits, whether it holds something held out).
"""
SAMPLES: dict[str, tuple[SampleRows, dict[Split, int]]] = {
    "text": (_text_rows, {"train": 2_400_000, "val": 100_000}),
    "chat": (chat_rows, {"train": 1_800_000, "val": 50_000}),
    "sentences": (sentence_rows, {"train": 600_000, "val": 30_000}),
    "preference": (preference_rows, {"train": 300_000, "val": 50_000}),
}
"""By name, which is the rows' format but for `sentences`, of conversations: its rows, and how many
bytes of them."""


def write_sample(path: str | Path, name: str, split: Split, seed: int = 0) -> None:
    """Writes rows of that sample, the same ones for the same seed."""
    rows, num_bytes = SAMPLES[name]
    left = num_bytes[split]
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for row, keys, is_held_out in rows(seed):
            is_val = is_held_out or any(_bucket(key) == 0 for key in keys)
            if is_val != (split == "val"):
                continue
            line = json.dumps(row, ensure_ascii=False) + "\n"
            file.write(line)
            left -= len(line.encode())
            if left <= 0:
                return


def sample_data_path(split: Split, name: str = "text", cache_dir: str | Path | None = None) -> Path:
    """The sample data as a file in the cache folder, written there if it is not yet. Raises
    ConfigError where there is none of that name."""
    if name not in SAMPLES:
        raise ConfigError(f"there is no sample data named {name}: give --data")
    # Named by the generators' own source, so that a changed one never finds an old file.
    sources = [Path(str(module.__file__)) for module in _SOURCES]
    sources.append(Path(__file__))
    version = hashlib.blake2b(b"".join(p.read_bytes() for p in sources), digest_size=6).hexdigest()
    folder = Path(cache_dir or default_cache_dir()) / "sample"
    path = folder / f"sample_{name}_{split}_{version}.jsonl"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
        write_sample(temporary, name, split)
        os.replace(temporary, path)
    return path


def train_sample_tokenizer(cache_dir: str | Path | None = None) -> Tokenizer:
    """Makes the shipped tokenizer again, from the sample text. After a change of the text:
    `python -c "from minimind.data.sample_files import *; train_sample_tokenizer().save(
    'minimind/data/sample_tokenizer')"`."""
    texts = read_training_texts([str(sample_data_path("train", cache_dir=cache_dir))])
    # Tokens of at most four Chinese characters: else whole sentences become tokens.
    return train_tokenizer(texts, MAX_SAMPLE_VOCAB, max_token_bytes=12)


def _bucket(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") % (
        _VAL_ONE_IN
    )

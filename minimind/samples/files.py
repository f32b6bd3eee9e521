"""Writes the sample data as JSON Lines files in the cache folder, when a run first needs them."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from minimind.data.chat_format import read_chat
from minimind.data.chat_template import CHAT_TEMPLATE, render_chat
from minimind.data.tokenizer import Tokenizer
from minimind.data.tokenizer_training import RESERVED_TOKENS, train_tokenizer
from minimind.data.training_texts import read_training_texts
from minimind.errors import DataError
from minimind.runtime.cache_folder import CACHE_ADVICE, default_cache_dir, locked
from minimind.runtime.whole_files import write_whole
from minimind.samples import chat, text, tool_use, tools, world
from minimind.samples.chat import chat_rows, preference_rows, sentence_rows, unpaired_rows
from minimind.samples.text import Dice, SampleRow, text_documents
from minimind.samples.tool_use import tool_conversation

Split = Literal["train", "val"]
MAX_SAMPLE_VOCAB = 2048
"""The largest vocabulary to ask for; the sample text is so regular that training ends with fewer
merges."""
_TOOL_CONVERSATIONS = 1000
_SOURCES = (world, text, chat, tools, tool_use)
_VAL_ONE_IN = 20
"""One document or question in so many, chosen by its hash, is in the validation data only."""


def _text_rows(seed: int) -> Iterator[SampleRow]:
    for document, is_held_out in text_documents(seed):
        yield {"text": document}, [document], is_held_out


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleData:
    """Defines one set of sample rows, which a stage trains on where no --data is given, and the
    size of its two files."""

    name: str
    rows: Callable[[int], Iterator[SampleRow]]
    """Takes a seed and yields rows, possibly without end."""
    train_bytes: int
    val_bytes: int


TEXT_DATA = SampleData(name="text", rows=_text_rows, train_bytes=3_500_000, val_bytes=100_000)
CHAT_DATA = SampleData(name="chat", rows=chat_rows, train_bytes=2_300_000, val_bytes=50_000)
SENTENCES_DATA = SampleData(
    name="sentences", rows=sentence_rows, train_bytes=600_000, val_bytes=30_000
)
PREFERENCE_DATA = SampleData(
    name="preference", rows=preference_rows, train_bytes=300_000, val_bytes=50_000
)
UNPAIRED_DATA = SampleData(
    name="unpaired", rows=unpaired_rows, train_bytes=300_000, val_bytes=50_000
)


def write_sample(
    path: str | Path, split: Split, data: SampleData = TEXT_DATA, seed: int = 0
) -> None:
    """Writes rows of `data` for one split into a file, up to its size in bytes. The same seed gives
    the same rows."""
    left = data.train_bytes if split == "train" else data.val_bytes
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for row, keys, is_held_out in data.rows(seed):
            is_val = is_held_out or any(_bucket(key) == 0 for key in keys)
            if is_val != (split == "val"):
                continue
            line = json.dumps(row, ensure_ascii=False) + "\n"
            file.write(line)
            left -= len(line.encode())
            if left <= 0:
                return


def sample_data_path(split: Split, data: SampleData = TEXT_DATA) -> Path:
    """Gives the path of the sample data's file in the cache folder, and writes the file where it is
    missing. Raises DataError where that is not possible."""
    # The name holds a hash of the generators' source, so a changed generator never finds an old
    # file.
    sources = [Path(str(module.__file__)) for module in _SOURCES]
    sources += [Path(__file__), Path(str(inspect.getsourcefile(data.rows)))]
    version = hashlib.blake2b(b"".join(p.read_bytes() for p in sources), digest_size=6).hexdigest()
    folder = default_cache_dir() / "sample"
    path = folder / f"sample_{data.name}_{split}_{version}.jsonl"
    try:
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            # Where several programs start at once, one writes the file and the others wait:
            # replacing it would change it under a program that reads it.
            with locked(path.with_suffix(".lock")):
                if not path.is_file():
                    with write_whole(path) as new:
                        write_sample(new, split, data)
    except OSError as error:
        raise DataError(
            f"{folder}: the sample data cannot be written: {error.strerror}; {CACHE_ADVICE}"
        ) from None
    return path


def train_sample_tokenizer() -> Tokenizer:
    """Trains the shipped tokenizer again, on the sample text and some conversations with tools.
    Needed after a change to either: `python -c "from minimind.samples.files import *;
    train_sample_tokenizer().save('minimind/samples/tokenizer')"`."""
    texts = read_training_texts([str(sample_data_path("train"))])
    # Tokens hold at most four Chinese characters; without the limit whole sentences become tokens.
    return train_tokenizer([*texts, *_tool_texts()], MAX_SAMPLE_VOCAB, max_token_bytes=12)


def _tool_texts() -> Iterator[str]:
    """Yields the texts between the special tokens of conversations with tools, to train the
    tokenizer on: with them in its vocabulary a prompt with tools takes 107 tokens instead of
    234."""
    added = re.compile("|".join(map(re.escape, RESERVED_TOKENS)))
    dice = Dice(0)
    for _ in range(_TOOL_CONVERSATIONS):
        row, _, _ = tool_conversation(dice)
        conversation = read_chat(row["conversations"], "the sample")
        whole = render_chat(CHAT_TEMPLATE, conversation.messages, conversation.tools)
        # Line ends at a text's edges are stripped so that "\n\n" stays two tokens: as one token,
        # ChatEncoder would give a conversation other ids than transformers does.
        yield from (part.strip("\n") for part in added.split(whole))


def _bucket(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") % (
        _VAL_ONE_IN
    )

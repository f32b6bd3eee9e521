"""Makes the sample data as files, when first asked for, in the cache folder."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from minimind.data.chat_format import read_chat
from minimind.data.chat_template import CHAT_TEMPLATE, render_chat
from minimind.data.tokenizer import Tokenizer
from minimind.data.tokenizer_training import RESERVED_TOKENS, train_tokenizer
from minimind.data.training_texts import read_training_texts
from minimind.runtime.cache_folder import default_cache_dir, locked
from minimind.runtime.whole_files import write_whole
from minimind.samples import chat, text, tool_use, tools, world
from minimind.samples.chat import chat_rows, preference_rows, sentence_rows, unpaired_rows
from minimind.samples.text import Dice, text_documents
from minimind.samples.tool_use import tool_conversation

Split = Literal["train", "val"]
MAX_SAMPLE_VOCAB = 2048
"""The text is so regular that its merges end earlier."""
_TOOL_CONVERSATIONS = 1000
_SOURCES = (world, text, chat, tools, tool_use)
_VAL_ONE_IN = 20
"""This share of all documents and questions, chosen by their hash, is for validation alone."""


def _text_rows(seed: int) -> Iterator[tuple[dict[str, Any], list[str], bool]]:
    for document, is_held_out in text_documents(seed):
        yield {"text": document}, [document], is_held_out


SampleRows = Callable[[int], Iterator[tuple[dict[str, Any], list[str], bool]]]
"""From a seed (row, what must not be in both splits, whether it holds something held out),
endless or as many as there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleData:
    """Rows that a stage trains on where no data is given."""

    name: str
    rows: SampleRows
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
    """Writes rows of that sample, the same ones for the same seed."""
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


def sample_data_path(
    split: Split, data: SampleData = TEXT_DATA, cache_dir: str | Path | None = None
) -> Path:
    """Gives the sample data as a file in the cache folder, written there if it is missing."""
    # Named by the generators' own source, so that a changed one never finds an old file.
    sources = [Path(str(module.__file__)) for module in _SOURCES]
    sources += [Path(__file__), Path(str(inspect.getsourcefile(data.rows)))]
    version = hashlib.blake2b(b"".join(p.read_bytes() for p in sources), digest_size=6).hexdigest()
    folder = Path(cache_dir or default_cache_dir()) / "sample"
    path = folder / f"sample_{data.name}_{split}_{version}.jsonl"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        # Of programs that start together one writes: a second file in its place would be another
        # to those that read the first.
        with locked(path.with_suffix(".lock")):
            if not path.is_file():
                with write_whole(path) as new:
                    write_sample(new, split, data)
    return path


def train_sample_tokenizer(cache_dir: str | Path | None = None) -> Tokenizer:
    """Makes the shipped tokenizer again, from the sample text and some conversations with tools.
    After a change of either: `python -c "from minimind.samples.files import *;
    train_sample_tokenizer().save('minimind/samples/tokenizer')"`."""
    texts = read_training_texts([str(sample_data_path("train", cache_dir=cache_dir))])
    # Tokens of at most four Chinese characters: else whole sentences become tokens.
    return train_tokenizer([*texts, *_tool_texts()], MAX_SAMPLE_VOCAB, max_token_bytes=12)


def _tool_texts() -> Iterator[str]:
    """Yields what stands between the added tokens of conversations with tools: a prompt with tools
    takes 107 tokens where their names and the words around them are tokens, else 234."""
    added = re.compile("|".join(map(re.escape, RESERVED_TOKENS)))
    dice = Dice(0)
    for _ in range(_TOOL_CONVERSATIONS):
        row, _, _ = tool_conversation(dice)
        conversation = read_chat(row["conversations"], "the sample")
        whole = render_chat(CHAT_TEMPLATE, conversation.messages, conversation.tools)
        # Two line ends stay two tokens, or conversations would have other ids than transformers
        # gives them (ChatEncoder).
        yield from (part.strip("\n") for part in added.split(whole))


def _bucket(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") % (
        _VAL_ONE_IN
    )

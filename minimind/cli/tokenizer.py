"""Trains a tokenizer: `minimind tokenizer --data A.jsonl --output_dir DIR`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from minimind.cli.verb_parser import VerbParser
from minimind.data.rows import FORMAT_NAMES
from minimind.data.tokenizer import Tokenizer
from minimind.data.tokenizer_training import MIN_VOCAB_SIZE, train_tokenizer
from minimind.data.training_texts import read_training_texts
from minimind.errors import ConfigError, DataError
from minimind.samples.sources import find_data_file

CHECKED_CHARS = 1 << 20
"""The number of characters at the data's beginning on which compression and the round trip are
checked."""


def build_parser() -> VerbParser:
    parser = VerbParser(description="Trains a byte-level BPE tokenizer on JSON lines.")
    parser.add_argument(
        "--data",
        nargs="+",
        required=True,
        help="files, folders or patterns of any rows that training reads, or plain text; "
        "sample:NAME is the project's own data of that name",
    )
    parser.add_argument(
        "--format",
        choices=FORMAT_NAMES,
        help="the form of the rows, or how plain text is parted (default: the first rows tell)",
    )
    parser.add_argument(
        "--vocab_size",
        type=int,
        default=6400,
        help=f"tokens, at least {MIN_VOCAB_SIZE} (default: %(default)s)",
    )
    parser.add_argument(
        "--max_bytes",
        type=int,
        default=0,
        help="bytes to read of each source of --data at most; training holds every different word "
        "in memory (default: 0, all)",
    )
    parser.add_argument("--output_dir", required=True, help="folder for the two files")
    parser.add_argument(
        "--on_bad_row",
        choices=("stop", "skip"),
        default="stop",
        help="end with a list of the bad rows, or leave them out and list them (default: "
        "%(default)s)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Trains a tokenizer; gives the exit status: 0 done, 130 interrupted."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        train(args)
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    return 0


def train(args: argparse.Namespace) -> None:
    output = Path(args.output_dir)
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output_dir {output} is a file; name a folder")
    if args.max_bytes < 0:
        raise ConfigError(f"--max_bytes {args.max_bytes}: give 0 for all, or how many")
    checked: list[str] = []
    data = [find_data_file(path, "train") for path in args.data]
    texts = read_training_texts(
        data,
        args.on_bad_row,
        progress=True,
        format_name=args.format,
        max_bytes=args.max_bytes,
    )
    tokenizer = train_tokenizer(_remember(texts, checked), args.vocab_size, progress=True)
    num_bytes = sum(len(text.encode()) for text in checked)
    ids = tokenizer.encode_batch(checked)
    num_tokens = sum(map(len, ids))
    for text, text_ids in zip(checked, ids, strict=True):
        if tokenizer.decode(text_ids, skip_special=False) != text:
            raise DataError(f"the round trip changed a text that starts {text[:60]!r}")
    _save(tokenizer, output)
    if tokenizer.vocab_size < args.vocab_size:
        print(f"the data is too small for more merges than {tokenizer.vocab_size} tokens take")
    print(
        f"{output}: {tokenizer.vocab_size} tokens, {num_bytes / num_tokens:.2f} bytes a token; "
        f"round trip of {num_bytes:,} bytes: exact"
    )


def _save(tokenizer: Tokenizer, output: Path) -> None:
    try:
        tokenizer.save(output)
        Tokenizer.load(output)
    except OSError as error:
        raise DataError(f"{output}: cannot be written: {error.strerror}") from None


def _remember(texts: Iterator[str], checked: list[str]) -> Iterator[str]:
    """Yields the texts unchanged, and appends the first ones to `checked`."""
    left = CHECKED_CHARS
    for text in texts:
        checked.append(text)
        yield text
        left -= len(text)
        if left <= 0:
            break
    yield from texts

"""Answers a file of conversations with one model, to train another on the answers: `minimind train
--stage sft` on this output is sequence-level distillation (Kim & Rush 2016).

    minimind answer --checkpoint runs/teacher --data questions.jsonl --output answers.jsonl
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from minimind.cli.verb_parser import VerbParser
from minimind.data.chat_encoding import Chat, ChatEncoder
from minimind.data.chat_format import read_conversation
from minimind.data.jsonl import BadRow, RowProblem, require_key
from minimind.data.rows import FORMAT_NAMES, open_rows, unread_message
from minimind.errors import ConfigError, DataError
from minimind.inference.batch_engine import BatchEngine
from minimind.inference.load import (
    add_dtype_flag,
    chat_notice,
    choose_placement,
    load_checkpoint,
)
from minimind.inference.request import GenerationRequest
from minimind.inference.sampling import SamplingParams
from minimind.runtime.logging import set_up_logging
from minimind.runtime.seeds import derive_seed
from minimind.runtime.whole_files import write_whole
from minimind.types import Row

logger = logging.getLogger("minimind")

_BATCH = 32
"""The number of rows answered together."""
_WRITTEN = ("system", "tools", "conversations")
"""The keys of a row that are kept in its answered row."""


def main(argv: Sequence[str] | None = None) -> int:
    set_up_logging(0)
    options = _parser().parse_args(argv)
    try:
        answered, unfinished = answer_file(options)
    except OSError as error:
        raise ConfigError(
            f"--output {options.output}: cannot be written: {error.strerror}"
        ) from None
    print(f"{options.output}: {answered:,} answered, {unfinished:,} left out: empty or unfinished")
    return 0


def _parser() -> VerbParser:
    parser = VerbParser(
        description="Answers conversations with a model: chat data in, chat data out."
    )
    add = parser.add_argument
    add("--checkpoint", required=True, type=Path, metavar="FOLDER",
        help="a run, a checkpoint in it or a Hugging Face folder")  # fmt: skip
    add(
        "--data",
        required=True,
        metavar="FILE",
        help="conversations or prompts in any form that training reads; a last assistant turn is "
        "answered anew",
    )
    add("--format", choices=FORMAT_NAMES, help="the form of the rows (default: the first ones "
        "tell)")  # fmt: skip
    add("--output", required=True, type=Path, metavar="FILE", help="the same with its answers")
    add("--max_rows", type=int, default=0, help="rows at most (default: 0, all)")
    add("--max_new_tokens", type=int, default=256, help="of an answer; a longer one is left out "
        "(default: 256)")  # fmt: skip
    add("--temperature", type=float, default=0.0, help="of answers (default: 0, greedy)")
    add("--top_p", type=float, default=1.0, help="share of the likeliest tokens (default: 1)")
    add_dtype_flag(parser)
    add("--seed", type=int, default=0, help="of answers, with each row's line (default: 0)")
    return parser


def answer_file(options: argparse.Namespace) -> tuple[int, int]:
    """Answers a file's rows; gives how many were answered and how many left out. The output file is
    complete or absent."""
    if options.max_rows < 0:
        raise ConfigError(f"--max_rows {options.max_rows}: give 0 for all, or how many")
    params = SamplingParams(
        max_new_tokens=options.max_new_tokens, temperature=options.temperature, top_p=options.top_p
    )
    placement = choose_placement(dtype=options.dtype)
    model, tokenizer = load_checkpoint(options.checkpoint, placement)
    if notice := chat_notice(options.checkpoint):
        logger.warning("%s", notice)
    encoder, engine = ChatEncoder(tokenizer), BatchEngine(model, tokenizer, max_batch=_BATCH)
    answered = left_out = 0
    with (
        write_whole(options.output) as new,
        new.open("w", encoding="utf-8") as file,
        tqdm(unit="row", disable=None) as bar,
    ):
        # The engine reads questions ahead of the answers it gives, in the same order.
        asked: deque[dict[str, Any]] = deque()

        def requests() -> Iterator[GenerationRequest]:
            for row, chat in _questions(options):
                asked.append(_asked(row))
                row_params = replace(params, seed=derive_seed(options.seed, row.line))
                request = GenerationRequest(
                    prompt_ids=encoder.prompt_ids(chat),
                    params=row_params,
                    stop_ids=(tokenizer.eos_id,),
                )
                try:
                    engine.check(request)
                except ConfigError as error:
                    raise DataError(f"{row.path}:{row.line}: {error}") from None
                yield request

        for completion in engine.complete(requests()):
            bar.update()
            row, answer = asked.popleft(), completion.text.strip()
            if not answer or completion.finish_reason != "stop":
                left_out += 1
                continue
            answered += 1
            row["conversations"].append({"role": "assistant", "content": answer})
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        if not answered:
            raise ConfigError(
                f"none of {left_out} rows got a whole answer of less than "
                f"{params.max_new_tokens} tokens: nothing was written; raise --max_new_tokens"
            )
    return answered, left_out


def _questions(options: argparse.Namespace) -> Iterator[tuple[Row, Chat]]:
    """Yields each row, and its conversation up to where the assistant speaks next. Raises
    DataError."""
    reader = open_rows(options.data, ("prompt",), options.format)
    if described := reader.describe():
        logger.info("%s: %s", options.data, described)
    unread: Counter[str] = Counter()
    for row, _ in itertools.islice(reader, options.max_rows or None):
        if isinstance(row, BadRow):
            raise DataError(str(row))
        try:
            require_key(row, "conversations", '{"conversations": […]}')
            chat = read_conversation(row.data, needs_answer=False)
        except RowProblem as problem:
            raise DataError(str(BadRow.of(row, str(problem)))) from None
        if chat.messages[-1]["role"] == "assistant":
            chat = replace(chat, messages=chat.messages[:-1])
        if not chat.messages or chat.messages[-1]["role"] not in ("user", "tool"):
            raise DataError(str(BadRow.of(row, "no user's turn to answer at its end")))
        unread.update(f"{key!r}" for key in row.data if key not in _WRITTEN)
        yield row, chat
    if unread := unread + reader.unread:
        logger.warning("%s", unread_message(options.data, unread, reader.num_rows))


def _asked(row: Row) -> dict[str, Any]:
    """Gives the row without its answer and without keys that the output does not keep."""
    kept = {key: row.data[key] for key in _WRITTEN if key in row.data}
    turns = list(kept["conversations"])
    if turns[-1]["role"] == "assistant":
        turns.pop()
    return {**kept, "conversations": turns}

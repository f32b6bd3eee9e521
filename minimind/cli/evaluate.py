r"""Evaluates checkpoints: perplexity, multiple choice, tasks of lm-evaluation-harness, and answers
to fixed prompts side by side.

    minimind evaluate --checkpoint runs/a runs/b --data held_out.jsonl --choices ceval/val \
        --prompts "Who are you?" --json results.json
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minimind.cli.verb_parser import VerbParser
from minimind.data.tokenizer import Tokenizer
from minimind.errors import ConfigError
from minimind.evaluation.multiple_choice import measure_choices, read_questions
from minimind.evaluation.perplexity import measure_perplexity
from minimind.evaluation.tables import result_tables
from minimind.inference.load import (
    add_dtype_flag,
    chat_notice,
    choose_placement,
    load_checkpoint,
)
from minimind.inference.prompts import answer_prompts
from minimind.inference.sampling import SamplingParams
from minimind.model.transformer import Transformer
from minimind.runtime.logging import set_up_logging
from minimind.runtime.printable import printable
from minimind.runtime.text_table import format_table
from minimind.runtime.whole_files import write_whole
from minimind.samples.sources import find_data_file


def main(argv: Sequence[str] | None = None) -> int:
    set_up_logging(0)
    options = _parser().parse_args(argv)
    if not (options.data or options.choices or options.tasks or options.prompts):
        raise ConfigError("nothing to evaluate: give --data, --choices, --tasks or --prompts")
    results = {str(folder): evaluate(folder, options) for folder in options.checkpoint}
    print(printable(report(results)))
    if options.json:
        _write_json(options.json, results)
    return 0


def _write_json(path: Path, results: dict[str, dict[str, Any]]) -> None:
    text = json.dumps(results, indent=1, ensure_ascii=False, default=str) + "\n"
    try:
        with write_whole(path) as new:
            new.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--json {path}: cannot be written: {error.strerror}") from None


def _parser() -> VerbParser:
    parser = VerbParser(
        description="Evaluates checkpoints: perplexity, multiple choice, fixed prompts."
    )
    add = parser.add_argument
    add("--checkpoint", required=True, nargs="+", type=Path, metavar="FOLDER",
        help="runs, checkpoints or Hugging Face folders")  # fmt: skip
    add("--data", nargs="+", default=[], metavar="FILE",
        help="JSON lines to measure perplexity on; sample:NAME: the project's own")  # fmt: skip
    add("--format", choices=("text", "chat"), default="text", help="of --data (default: text)")
    add("--seq_len", type=int, default=1024, help="tokens of a packed row (default: 1024)")
    add("--max_rows", type=int, default=0, help="rows of --data at most (default: 0, all)")
    add("--on_bad_row", choices=("stop", "skip"), default="stop", help="(default: stop)")
    add("--choices", type=Path, metavar="PATH",
        help="questions in the layout of C-Eval or CMMLU: a .csv or a folder")  # fmt: skip
    add("--examples", type=Path, metavar="PATH", help="answered questions to show before each")
    add("--num_examples", type=int, metavar="N",
        help="how many of them (default: 0; of --tasks, each task's own number)")  # fmt: skip
    add("--tasks", nargs="+", default=[], metavar="NAME", help="tasks of lm-evaluation-harness")
    add("--task_folder", type=Path, metavar="FOLDER", help="YAML files with tasks of your own")
    add("--max_questions", type=int, metavar="N", help="of a task at most (default: all)")
    add("--prompts", nargs="+", default=[], metavar="TEXT",
        help="prompts to answer, or @FILE with one a line")  # fmt: skip
    add("--chat", action="store_true",
        help="ask --prompts and --tasks as a user's turn, not as text to go on")  # fmt: skip
    add("--max_new_tokens", type=int, default=128, help="of an answer (default: 128)")
    add("--temperature", type=float, default=0.0, help="of answers (default: 0, greedy)")
    add("--seed", type=int, default=0, help="of answers (default: 0)")
    add_dtype_flag(parser)
    add("--json", type=Path, metavar="FILE", help="results file")
    return parser


def evaluate(checkpoint: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Takes the measurements that the options ask for, of one checkpoint. Raises a
    MiniMindError."""
    placement = choose_placement(dtype=options.dtype)
    model, tokenizer = load_checkpoint(checkpoint, placement)
    found: dict[str, Any] = {
        "device": placement.device.name,
        "dtype": str(placement.dtype).removeprefix("torch."),
        "num_parameters": model.config.num_parameters,
    }
    if options.chat and (notice := chat_notice(checkpoint)):
        found["notice"] = notice
    if options.data:
        found["perplexity"] = [
            asdict(
                measure_perplexity(
                    model,
                    tokenizer,
                    find_data_file(path, "val"),
                    format=options.format,
                    seq_len=options.seq_len,
                    max_rows=options.max_rows,
                    on_bad_row=options.on_bad_row,
                    progress=True,
                )
            )
            for path in options.data
        ]
    if options.choices:
        results = measure_choices(
            model,
            tokenizer,
            read_questions(options.choices),
            examples=read_questions(options.examples) if options.examples else (),
            num_examples=options.num_examples or 0,
            progress=True,
        )
        found["choices"] = {name: asdict(result) for name, result in results.items()}
    if options.tasks:
        found["tasks"] = _run_tasks(model, tokenizer, options)
    if options.prompts:
        prompts = _read_prompts(options.prompts)
        params = SamplingParams(
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            seed=options.seed,
        )
        answers = answer_prompts(model, tokenizer, prompts, params, is_chat=options.chat)
        found["answers"] = [
            {"prompt": prompt, "answer": answer}
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
    return found


def _run_tasks(
    model: Transformer, tokenizer: Tokenizer, options: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError("--tasks needs lm-evaluation-harness: pip install 'minimind[eval]'")
    from minimind.evaluation.tasks import run_tasks

    return run_tasks(
        model,
        tokenizer,
        options.tasks,
        folder=options.task_folder,
        num_examples=options.num_examples,
        max_questions=options.max_questions,
        is_chat=options.chat,
    )


def _read_prompts(given: Sequence[str]) -> list[str]:
    prompts: list[str] = []
    for text in given:
        if not text.startswith("@"):
            prompts.append(text)
            continue
        try:
            lines = Path(text[1:]).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--prompts {text}: cannot be read: {error}") from None
        prompts += [line for line in lines if line.strip()]
    if not all(prompt.strip() for prompt in prompts) or not prompts:
        raise ConfigError("--prompts holds no text to answer")
    return prompts


def report(results: dict[str, dict[str, Any]]) -> str:
    """Writes the content of --json as text: a table for each kind of measure, with a row per
    checkpoint, and below it the answers to each prompt and what to know of the models."""
    parts = [format_table(rows) for rows in result_tables(results).values()]
    answers = {name: found["answers"] for name, found in results.items() if "answers" in found}
    for number, first in enumerate(next(iter(answers.values()), ())):
        lines = [f"{name}: {rows[number]['answer']}" for name, rows in answers.items()]
        parts.append("\n".join([f"> {first['prompt']}", *lines]))
    parts += [f"note: {found['notice']}" for found in results.values() if "notice" in found]
    return "\n\n".join(parts)

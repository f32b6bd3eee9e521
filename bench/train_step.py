"""Training steps of several kinds in turns: `python -m bench.train_step --stage S --json FILE`.

`engine` is the step of a training run itself, one row for each JSON: all that launch/train.py does
between console, metrics.csv and checkpoints. `plain_loop` is the same stage in a bare loop;
`original` is the model of pretraining as plain PyTorch modules in fp32 over padded batches, and on
request `compiled` and `transformers` train over those batches too. Beside the other stages stands
what they are judged by: another stage in the engine (`pretrain`, `sft`), DPO with its reference in
every step (`two_models`), a teacher's or reference's forward (`frozen`). `original` of GRPO answers
one prompt at a time with plain modules (bench/rollout_rows.py); fresh weights seldom end an answer,
so that in all rows nearly every one has max_new_tokens. All start from the same
weights, follow the run's learning rate and find their batches read ahead by a background thread. A
round is one step of every row, in random order.

Exit status: 0 done, 1 a row broke, 2 bad usage, configuration or data, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench import harness
from bench.padded_rows import is_padded
from bench.stage_goals import format_goals, measure_goals
from bench.train_report import NOT_MEASURED, build_rows, format_rows
from bench.train_rows import all_rows, usual_rows
from bench.train_runs import DOCUMENT_TOKENS, RowSpec, build_specs
from bench.train_workers import StepTime, TrainedRow
from bench.turns import pass_turn
from bench.workers import Worker, WorkerError
from minimind.config.deepspeed_json import precision
from minimind.errors import ConfigError
from minimind.run.resolve import ResolvedRun
from minimind.runtime.devices import find_device, limit_threads
from minimind.runtime.logging import set_up_logging
from minimind.runtime.ranks import read_ranks
from minimind.stages import STAGES

FIRST_LOSS_TOLERANCE = 1e-4
"""Between a padded row and our model, both in fp32: about ten times what rounding makes of it."""


def main(argv: Sequence[str] | None = None) -> int:
    set_up_logging(0)
    options = build_parser().parse_args(argv)
    return harness.run_program(lambda: measure(options))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.train_step",
        description="Measures training steps: useful tokens/s, padding, memory, operators.",
        allow_abbrev=False,
    )

    def add(name: str, default: Any, text: str, **more: Any) -> None:
        shown = "" if default is None else f" (default: {default})"
        parser.add_argument(f"--{name}", default=default, help=text + shown, **more)

    number: dict[str, Any] = {"type": _at_least(1), "metavar": "N"}
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="results file")
    add("stage", "pretrain", "training objective", choices=tuple(STAGES))
    add("model", "minimind2-small", "presets or JSON files", metavar="A,B")
    add("data", None, "JSON lines (default: the stage's embedded sample data)", metavar="FILE")
    add(
        "other_data",
        None,
        "the same for a row of a stage that reads another format",
        metavar="FILE",
    )
    add("tokenizer", None, "its folder (default: the sample data's own)", metavar="DIR")
    add("ds_config", ["zero2.json"], "one engine row for each", nargs="+", metavar="JSON")
    add("rows", None, "which rows to measure (default: the stage's usual ones)", metavar="A,B")
    add("steps", 10, "timed optimizer steps of each row", **number)
    add("warmup", 2, "optimizer steps before those", **number)
    add(
        "document_tokens",
        None,
        f"pretrain: documents are cut there (default: {DOCUMENT_TOKENS})",
        type=_at_least(2),
        metavar="N",
    )
    add("accumulation", 4, "micro-batches of a step", **number)
    add("precision", "auto", "of all rows but original", choices=("auto", "bf16", "fp32"))
    add("seq_len", None, "tokens of a packed row (default: the preset's)", **number)
    add("micro_batch", None, "packed rows of a micro-batch (default: the preset's)", **number)
    add("original_batch", 8, "documents of a micro-batch of the row original", **number)
    add("seed", 0, "of the documents and of the turns", type=_at_least(0), metavar="N")
    parser.add_argument(
        "--profile", action="store_true", help="add to each row where the time of a step goes"
    )
    add("set", [], "as for launch/train.py", action="append", metavar="KEY=VALUE")
    return parser


def measure(options: argparse.Namespace) -> None:
    """Raises MiniMindError for what the user can mend, WorkerError where a row breaks."""
    device, names = find_device(), list(usual_rows(options.stage))
    if options.rows:
        names = parse_names(options.rows, "--rows", all_rows(options.stage))
    if read_ranks().world_size > 1:
        raise ConfigError("bench.train_step measures one rank: start it with python, no launcher")
    limit_threads(1)
    harness.check_writable(options.json)
    models = parse_names(options.model, "--model")
    with tempfile.TemporaryDirectory(prefix="bench-start-") as folder:
        specs = {
            model: build_specs(options, model, names, device, Path(folder) / str(number))
            for number, model in enumerate(models)
        }
        machine = harness.describe_machine(device)
        print(f"{machine['device']}, {machine['cores']} cores, load {machine['load_average'][0]}")
        rows, checks, goals, broken = [], [], [], []
        for model in models:
            _announce(model, specs[model][0].run)
            found, checked = _measure_model(options, model, specs[model], broken)
            rows += found
            checks += checked
            goals += measure_goals(options.stage, found, device.kind == "gpu")
            # As they come: what breaks a later model leaves these.
            harness.write_results(
                options.json, "train_step", machine, vars(options), rows, checks=checks, goals=goals
            )
    print(format_rows(rows))
    print(format_goals(goals))
    print(f"written: {options.json}")
    if broken:
        raise WorkerError("timed, but nothing else measured:\n" + "\n".join(map(str, broken)))


def _measure_model(
    options: argparse.Namespace, model: str, specs: Sequence[RowSpec], broken: list[WorkerError]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(a row for each spec, what was compared before). What breaks after the timed steps goes to
    `broken`, so that the times are not lost."""
    padded = [spec.name for spec in specs if is_padded(spec)]
    with _started(specs) as workers:
        checks = [
            {"model": model, **_check_first_losses(worker)}
            for worker in workers
            if worker.name in padded
        ]
        built = _ask_all(workers, "build")
        times = _take_turns(workers, options)
        measured = [dict(NOT_MEASURED) for _ in workers]
        for worker, row in zip(workers, measured, strict=True):
            try:
                row |= worker.call("measure")
                if options.profile:
                    row["profile"] = worker.call("profile")
            except WorkerError as error:
                broken.append(error)
    return build_rows(model, specs, built, times, measured), checks


def _at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f"{value} is below {least}")
        return value

    parse.__name__ = "whole number"
    return parse


def parse_names(text: str, flag: str, allowed: Sequence[str] | None = None) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if allowed and name not in allowed:
            raise ConfigError(f"{flag} {name}: no such row; rows: {', '.join(allowed)}")
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"{flag} {text}: give one or more different names")
    return names


def _announce(model: str, run: ResolvedRun) -> None:
    kind = precision(run.ds_config)
    why = f" ({run.device.why_not_bf16})" if kind == "fp32" and run.device.why_not_bf16 else ""
    accumulation = run.ds_config["gradient_accumulation_steps"]
    print(
        f"{run.stage} of {model}: {run.config.num_parameters:,} parameters, {kind}{why}, step of "
        f"{accumulation} x {run.micro_batch_size} rows x {run.seq_len} tokens"
    )


@contextlib.contextmanager
def _started(specs: Sequence[RowSpec]) -> Iterator[list[Worker]]:
    workers: list[Worker] = []
    try:
        for spec in specs:
            workers.append(Worker(spec.name, TrainedRow, spec))
        yield workers
    finally:
        for worker in workers:
            worker.close()


def _ask_all(workers: Sequence[Worker], method: str) -> list[Any]:
    """All at once; the answers in order."""
    for worker in workers:
        worker.send(method)
    return [worker.receive() for worker in workers]


def _check_first_losses(worker: Worker) -> dict[str, Any]:
    """Before anything is timed: both sides compute the same thing. Raises WorkerError."""
    theirs, ours = worker.call("compare_first_losses")
    difference = abs(theirs - ours)
    print(f"first loss: {worker.name} {theirs:.6f}, ours {ours:.6f}, apart {difference:.1e}")
    if not difference <= FIRST_LOSS_TOLERANCE:
        raise WorkerError(
            f"{worker.name} and our model differ by {difference} in their first loss, more than "
            f"{FIRST_LOSS_TOLERANCE}: the rows would not measure the same thing"
        )
    return {"row": worker.name, "first_loss": theirs, "our_first_loss": ours}


def _take_turns(workers: Sequence[Worker], options: argparse.Namespace) -> list[list[StepTime]]:
    """The timed steps of each worker: in each round one step of every one, in random order."""
    total = (options.warmup + options.steps) * len(workers)
    times: list[list[StepTime]] = [[] for _ in workers]
    with tqdm(total=total, desc="steps", file=sys.stderr, disable=None) as bar:
        for worker in workers:
            for index in range(options.warmup):
                worker.call("step", index)
                bar.update()
        _ask_all(workers, "start_timing")
        generator = random.Random(options.seed)
        for index in range(options.warmup, options.warmup + options.steps):
            pass_turn()
            for turn in generator.sample(range(len(workers)), len(workers)):
                times[turn].append(workers[turn].call("step", index))
                bar.update()
    return times


if __name__ == "__main__":
    sys.exit(main())

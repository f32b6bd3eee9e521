"""Training steps of several kinds in turns: `python -m bench.train_step --json FILE`.

`original` is the same model as plain PyTorch modules in fp32 over padded batches, `plain_loop` our
model and loss in a bare loop, `engine` the same in DeepSpeed, one row for each JSON. All start from
the same weights and see the same documents. A round is one step of every row, in random order.

Exit status: 0 done, 1 a row broke, 2 bad usage, configuration or data, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench import harness
from bench.documents import Documents, draw_documents
from bench.train_report import build_rows, format_rows
from bench.train_rows import ROWS, RowSpec
from bench.train_workers import StepTime, TrainedRow
from bench.workers import Worker, WorkerError
from minimind.config.deepspeed_json import load_ds_config, precision
from minimind.config.flags import parse_train_arguments
from minimind.config.recipe import default_sizes, parse_assignments
from minimind.data.sample_files import sample_data_path
from minimind.data.sample_text import load_sample_tokenizer
from minimind.data.token_cache import build_token_cache
from minimind.data.tokenizer import Tokenizer
from minimind.errors import ConfigError, MiniMindError
from minimind.runtime.devices import Device, find_device, limit_threads
from minimind.runtime.logging import set_up_logging
from minimind.runtime.ranks import read_ranks
from minimind.stages import STAGES
from minimind.stages.resolve import ResolvedRun, resolve_run

logger = logging.getLogger("bench.train_step")

FIRST_LOSS_TOLERANCE = 1e-4
"""Between `original` and our model, both in fp32: about ten times what rounding makes of it."""
_MEASURED_STEPS = 2
"""Steps taken after the timed ones."""


def main(argv: Sequence[str] | None = None) -> int:
    set_up_logging(0)
    options = build_parser().parse_args(argv)
    try:
        measure(options)
    except MiniMindError as error:
        logger.error("error: %s", error)
        return 2
    except WorkerError as error:
        logger.error("error: %s", error)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


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
    add("model", "minimind2-small", "presets or JSON files", metavar="A,B")
    add("data", None, "JSON lines of text (default: the embedded sample data)", metavar="FILE")
    add("tokenizer", None, "its folder (default: the sample data's own)", metavar="DIR")
    add("ds_config", ["zero2.json"], "one engine row for each", nargs="+", metavar="JSON")
    add("rows", ",".join(ROWS), "which rows to measure", metavar="A,B")
    add("steps", 10, "timed optimizer steps of each row", **number)
    add("warmup", 2, "optimizer steps before those", **number)
    add("document_tokens", 340, "documents are cut there", type=_at_least(2), metavar="N")
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
    device, names = find_device(), _names(options.rows, "--rows", ROWS)
    if read_ranks().world_size > 1:
        raise ConfigError("bench.train_step measures one rank: start it with python, no launcher")
    limit_threads(1)
    harness.check_writable(options.json)
    tokenizer = Tokenizer.load(options.tokenizer) if options.tokenizer else load_sample_tokenizer()
    runs = {
        model: {ds: _resolve(options, model, ds, tokenizer, device) for ds in options.ds_config}
        for model in _names(options.model, "--model")
    }
    documents = _draw(
        options, [run for by_ds in runs.values() for run in by_ds.values()], tokenizer
    )
    machine = harness.describe_machine(device)
    print(f"{machine['device']}, {machine['cores']} cores, load {machine['load_average'][0]}")
    rows, checks = [], []
    for model, by_ds in runs.items():
        specs = _build_specs(options, by_ds, documents)
        _announce(model, specs[0].run)
        with _started(specs) as workers:
            if "original" in names:
                check = _check_first_losses(workers[names.index("original")])
                checks.append({"model": model, **check})
            built = _ask_all(workers, "build")
            times = _take_turns(workers, options)
            after = options.warmup + options.steps
            measured = [worker.call("measure", after) for worker in workers]
            if options.profile:
                for worker, row in zip(workers, measured, strict=True):
                    row["profile"] = worker.call("profile", after)
        rows += build_rows(model, specs, built, times, measured)
    arguments = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    harness.write_results(options.json, "train_step", machine, arguments, rows, checks=checks)
    print(format_rows(rows))
    print(f"written: {options.json}")


def _at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f"{value} is below {least}")
        return value

    parse.__name__ = "whole number"
    return parse


def _names(text: str, flag: str, allowed: Sequence[str] | None = None) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if allowed and name not in allowed:
            raise ConfigError(f"{flag} {name}: no such row; rows: {', '.join(allowed)}")
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"{flag} {text}: give one or more different names")
    return names


def _resolve(
    options: argparse.Namespace, model: str, ds_config: str, tokenizer: Tokenizer, device: Device
) -> ResolvedRun:
    """One engine row's run, as launch/train.py would resolve it."""
    fixed = {"micro_batch_size": "--micro_batch", "train_batch_size": "--accumulation"}
    for key in parse_assignments(options.set):
        if key in fixed:
            raise ConfigError(f"--set {key}: {fixed[key]} decides it here")
    micro_batch = options.micro_batch or default_sizes(device.kind, model).micro_batch_size
    settings = [*options.set, f"micro_batch_size={micro_batch}"]
    settings += [f"train_batch_size={micro_batch * options.accumulation}"]
    if options.precision != "auto":
        enabled = str(options.precision == "bf16").lower()
        settings += [f"ds_config.bf16.enabled={enabled}"]
        if "fp16" in load_ds_config(ds_config, {}):
            settings += ["ds_config.fp16.enabled=false"]
    argv = ["--stage", "pretrain", "--model", model, "--ds_config", ds_config]
    argv += ["--seq_len", str(options.seq_len)] if options.seq_len else []
    for setting in settings:
        argv += ["--set", setting]
    arguments = parse_train_arguments(argv, {n: s.recipe_type for n, s in STAGES.items()})
    return resolve_run(arguments, tokenizer, read_ranks(), device)


def _draw(
    options: argparse.Namespace, runs: Sequence[ResolvedRun], tokenizer: Tokenizer
) -> Documents:
    """Enough for the packed rows of every step, where the data has as much."""
    path = options.data or str(sample_data_path("train"))
    steps = options.warmup + options.steps + _MEASURED_STEPS
    return draw_documents(
        build_token_cache(path, tokenizer, progress=True),
        max_tokens=options.document_tokens,
        wanted_tokens=max(run.train_batch_size * run.seq_len for run in runs) * steps,
        pad_id=tokenizer.pad_id,
        seed=options.seed,
    )


def _build_specs(
    options: argparse.Namespace, runs: dict[str, ResolvedRun], documents: Documents
) -> list[RowSpec]:
    """The baselines take their precision from the first JSON."""
    first = next(iter(runs))
    specs = []
    for row in _names(options.rows, "--rows", ROWS):
        for name in runs if row == "engine" else [first]:
            spec = RowSpec(
                name=row,
                ds_config_name=name if row == "engine" else None,
                run=runs[name],
                documents=documents,
                original_batch=options.original_batch,
                steps=options.warmup + options.steps,
            )
            specs.append(spec)
    return specs


def _announce(model: str, run: ResolvedRun) -> None:
    kind = precision(run.ds_config)
    why = f" ({run.device.why_not_bf16})" if kind == "fp32" and run.device.why_not_bf16 else ""
    accumulation = run.ds_config["gradient_accumulation_steps"]
    print(
        f"{model}: {run.config.num_parameters:,} parameters, {kind}{why}, step of "
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


def _check_first_losses(worker: Worker) -> dict[str, float]:
    """Before anything is timed: both sides compute the same thing. Raises WorkerError."""
    original, ours = worker.call("compare_first_losses")
    difference = abs(original - ours)
    print(f"first loss: original {original:.6f}, ours {ours:.6f}, apart {difference:.1e}")
    if not difference <= FIRST_LOSS_TOLERANCE:
        raise WorkerError(
            f"original and our model differ by {difference} in their first loss, more than "
            f"{FIRST_LOSS_TOLERANCE}: the rows would not measure the same thing"
        )
    return {"original_first_loss": original, "our_first_loss": ours}


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
            for turn in generator.sample(range(len(workers)), len(workers)):
                times[turn].append(workers[turn].call("step", index))
                bar.update()
    return times


if __name__ == "__main__":
    sys.exit(main())

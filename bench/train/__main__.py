"""Times training steps of several kinds in turns: `python -m bench.train --stage S --json FILE`.

`engine` is the training run's own step, one row for each JSON: all that `minimind train` does in a
step, without console, metrics.csv and checkpoints. `plain_loop` is the same stage in a bare loop;
`original` is the model of pretraining as plain PyTorch modules in fp32 over padded batches. On
request, `compiled` and `transformers` train over those batches too. For a model with experts there
are `dense`, the same model with one feed-forward layer as wide as the experts that a token uses,
and `expert_loop`, which calls the experts as modules in a loop. The other stages are compared with
another stage in the engine (`pretrain`, `sft`), with DPO that computes its reference in every step
(`two_models`), or with the forward of a teacher or reference (`frozen`). `original` of GRPO answers
one prompt at a time with plain modules (bench/train/rollouts.py); fresh weights seldom end an
answer, so that in all rows nearly every one has max_new_tokens.

All rows start from the same weights and follow the run's learning rate, and a background thread
reads their batches ahead. A round is one step of every row, in random order.

Exit status: 0 done, 1 a row broke, 2 bad usage, configuration or data, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import harness
from bench.program import NUMBER, Options, at_least, parse_names, run_program
from bench.train.figures import NOT_MEASURED, build_rows, format_rows
from bench.train.goals import format_goals, measure_goals
from bench.train.specs import DOCUMENT_TOKENS, RowSpec, all_rows, build_specs, usual_rows
from bench.train.worker import TrainedRow
from bench.workers import WorkerError, ask_all, started, take_turns
from minimind.config.deepspeed_json import precision
from minimind.errors import ConfigError
from minimind.run.resolve import ResolvedRun
from minimind.runtime.devices import find_device, limit_threads
from minimind.runtime.ranks import read_ranks
from minimind.stages import STAGES


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(build_parser(), measure, argv)


def build_parser(module: str = "train", about: str | None = __doc__) -> Options:
    """Gives the options about the training, for each command that trains the rows."""
    parser = Options(module, about)
    add = parser.add
    cut = f"pretrain: documents are cut there (default: {DOCUMENT_TOKENS})"
    add("stage", "pretrain", "training objective", choices=tuple(STAGES))
    add("model", "minimind2-small", "presets or JSON files", metavar="A,B")
    add("data", None, "JSON lines (default: the stage's embedded sample data)", metavar="FILE")
    add("other_data", None, "for a row of a stage that reads another format", metavar="FILE")
    add("tokenizer", None, "its folder (default: the sample data's own)", metavar="DIR")
    add("ds_config", ["zero2.json"], "one engine row for each", nargs="+", metavar="JSON")
    add("rows", None, "which rows to measure (default: the stage's usual ones)", metavar="A,B")
    add("steps", 10, "timed optimizer steps of each row", **NUMBER)
    add("warmup", 2, "optimizer steps before those", **NUMBER)
    add("document_tokens", None, cut, type=at_least(2), metavar="N")
    add("accumulation", 4, "micro-batches of a step", **NUMBER)
    add("precision", "auto", "of all rows but original", choices=("auto", "bf16", "fp32"))
    add("seq_len", None, "tokens of a packed row (default: the preset's)", **NUMBER)
    add("micro_batch", None, "packed rows of a micro-batch (default: the preset's)", **NUMBER)
    add("original_batch", 8, "documents of a micro-batch of the row original", **NUMBER)
    add("seed", 0, "of the documents and of the turns", type=at_least(0), metavar="N")
    add("profile", False, "add to each row where the time of a step goes", action="store_true")
    add("set", [], "as for `minimind train`", action="append", metavar="KEY=VALUE")
    return parser


def measure(options: argparse.Namespace) -> None:
    """Measures every row. Raises MiniMindError for errors that the user can correct, WorkerError
    where a row breaks."""
    device, names = find_device(), list(usual_rows(options.stage))
    if options.rows:
        names = parse_names(options.rows, "--rows", all_rows(options.stage))
    if read_ranks().world_size > 1:
        raise ConfigError("bench.train measures one rank: start it with python, no launcher")
    limit_threads(1)
    models = parse_names(options.model, "--model")
    with tempfile.TemporaryDirectory(prefix="bench-start-") as folder:
        specs = {
            model: build_specs(options, model, names, device, Path(folder) / str(number))
            for number, model in enumerate(models)
        }
        machine = harness.describe_machine(device)
        print(f"{machine['device']}, {machine['cores']} cores, load {machine['load_average'][0]}")
        rows, goals, broken = [], [], []
        for model in models:
            _announce(model, specs[model][0].run)
            found = _measure_model(options, model, specs[model], broken)
            rows += found
            goals += measure_goals(options.stage, found, device.kind == "gpu")
            # Written after each model: if a later one breaks, these rows stay.
            harness.write_results(
                options.json, "train_step", machine, vars(options), rows, goals=goals
            )
    print(format_rows(rows))
    print(format_goals(goals))
    print(f"written: {options.json}")
    if broken:
        raise WorkerError("timed, but nothing else measured:\n" + "\n".join(map(str, broken)))


def _measure_model(
    options: argparse.Namespace, model: str, specs: Sequence[RowSpec], broken: list[WorkerError]
) -> list[dict[str, Any]]:
    """Gives a row for each spec. An error after the timed steps goes to `broken`, so that the times
    are not lost."""
    steps = range(options.warmup, options.warmup + options.steps)
    with started(TrainedRow, specs) as workers:
        built = ask_all(workers, "build")
        for worker in workers:
            for index in range(options.warmup):
                worker.call("step", index)
        ask_all(workers, "start_timing")
        times = take_turns(workers, "step", steps, options.seed, model)
        measured = [dict(NOT_MEASURED) for _ in workers]
        for worker, row in zip(workers, measured, strict=True):
            try:
                row |= worker.call("measure")
                if options.profile:
                    row["profile"] = worker.call("profile")
            except WorkerError as error:
                broken.append(error)
    return build_rows(model, specs, built, times, measured)


def _announce(model: str, run: ResolvedRun) -> None:
    kind = precision(run.ds_config)
    why = f" ({run.device.why_not_bf16})" if kind == "fp32" and run.device.why_not_bf16 else ""
    accumulation = run.ds_config["gradient_accumulation_steps"]
    print(
        f"{run.stage} of {model}: {run.config.num_parameters:,} parameters, {kind}{why}, step of "
        f"{accumulation} x {run.micro_batch_size} rows x {run.seq_len} tokens"
    )


if __name__ == "__main__":
    sys.exit(main())

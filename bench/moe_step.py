"""What experts cost in a training step: `python -m bench.moe_step --json FILE`.

For each model with experts, steps in turns: `dense`, the same model with one feed-forward layer as
wide as what a token meets of the experts; `experts`, as we train it; `expert_loop`, the same
experts as modules in a loop. All see the same packed documents. A round is one step of every row,
in random order.

Exit status: 0 done, 1 a row broke, 2 bad usage or configuration, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench import harness
from bench.documents import Documents, draw_documents
from bench.moe_rows import ROWS, MoERow, MoESpec, dense_config
from bench.workers import Worker
from minimind.config.deepspeed_json import precision
from minimind.data.token_cache import build_token_cache
from minimind.errors import ConfigError
from minimind.run.arguments import parse_arguments
from minimind.run.resolve import ResolvedRun
from minimind.run.run import Run
from minimind.runtime.devices import Device, find_device, limit_threads
from minimind.runtime.logging import set_up_logging
from minimind.runtime.ranks import Ranks
from minimind.samples.files import sample_data_path
from minimind.samples.text import load_sample_tokenizer

_DOCUMENT_TOKENS = 340


def main(argv: Sequence[str] | None = None) -> int:
    set_up_logging(0)
    options = build_parser().parse_args(argv)
    return harness.run_program(lambda: measure(options))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.moe_step", allow_abbrev=False)

    def add(name: str, default: Any, text: str, **more: Any) -> None:
        parser.add_argument(
            f"--{name}", default=default, help=f"{text} (default: {default})", **more
        )

    number: dict[str, Any] = {"type": int, "metavar": "N"}
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="results file")
    add("model", "minimind2-moe,minimind3-moe", "presets or JSON files with experts", metavar="A,B")
    add("seq_len", 1024, "tokens of a packed row", **number)
    add("micro_batch", 4, "rows of a step", **number)
    add("steps", 10, "timed steps of each row", **number)
    add("warmup", 2, "steps before those", **number)
    add("precision", "auto", "auto: bf16 where the device has it", choices=("auto", "bf16", "fp32"))
    add("seed", 0, "of the documents and of the turns", **number)
    add("set", [], "KEY=VALUE, any field of the models", action="append", metavar="KEY=VALUE")
    return parser


def measure(options: argparse.Namespace) -> None:
    """Raises MiniMindError for what the user can mend, WorkerError where a row breaks."""
    device = find_device()
    runs = {name: _resolve(options, name, device) for name in options.model.split(",")}
    for name, run in runs.items():
        if not run.config.num_experts:
            raise ConfigError(f"--model {name}: has no experts; minimind2-moe and minimind3-moe do")
    for name in ("seq_len", "micro_batch", "steps"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name} {getattr(options, name)}: give at least 1")
    harness.check_writable(options.json)
    limit_threads(1)
    documents = _draw(options)
    machine = harness.describe_machine(device)
    rows = []
    for run in runs.values():
        rows += _measure_model(run, options, documents)
    harness.write_results(options.json, "moe_step", machine, vars(options), rows)
    print(f"{machine['device']}, {machine['cores']} cores, load {machine['load_average'][0]}")
    print(format_rows(rows))
    print(f"written: {options.json}")


def _resolve(options: argparse.Namespace, model: str, device: Device) -> ResolvedRun:
    argv = ["--model", model, "--seq_len", str(options.seq_len)]
    settings = [
        f"micro_batch_size={options.micro_batch}",
        f"train_batch_size={options.micro_batch}",
    ]
    if options.precision != "auto":
        settings.append(f"ds_config.bf16.enabled={str(options.precision == 'bf16').lower()}")
    for setting in (*options.set, *settings):
        argv += ["--set", setting]
    return Run.on(parse_arguments(argv), Ranks(0, 0, 1), device).resolved


def _draw(options: argparse.Namespace) -> Documents:
    tokenizer = load_sample_tokenizer()
    steps = options.warmup + options.steps + 1
    return draw_documents(
        build_token_cache(str(sample_data_path("train")), tokenizer, progress=True),
        max_tokens=_DOCUMENT_TOKENS,
        wanted_tokens=options.seq_len * options.micro_batch * steps,
        pad_id=tokenizer.pad_id,
        seed=options.seed,
    )


def _measure_model(
    run: ResolvedRun, options: argparse.Namespace, documents: Documents
) -> list[dict[str, Any]]:
    name, config = run.model_name, run.config
    with contextlib.ExitStack() as stack:
        workers = []
        for row in ROWS:
            workers.append(Worker(row, MoERow, MoESpec(row=row, run=run, documents=documents)))
            stack.callback(workers[-1].close)
        described = [worker.call("describe") for worker in workers]
        times = _take_turns(name, workers, options)
        peaks = [worker.call("measure", options.warmup + options.steps) for worker in workers]
    seconds = [[second for second, _ in of_row] for of_row in times]
    rows = []
    for row, about, of_row, own, peak in zip(ROWS, described, times, seconds, peaks, strict=True):
        step_s, ratio = harness.summarize(own), harness.paired_ratio(own, seconds[0])
        targets = sum(count for _, count in of_row) / len(of_row)
        rows.append({
            "name": row,
            "model": name,
            "config": (dense_config(config) if row == "dense" else config).to_dict(),
            "precision": precision(run.ds_config),
            "tokens_per_step": options.seq_len * options.micro_batch,
            **about,
            "useful_tokens_per_s": targets / step_s["median"],
            "step_s": step_s,
            "step_ratio_to_dense": ratio["median"],
            "step_ratio_to_dense_error": ratio["standard_error"],
            "peak_bytes": peak,
            "step_seconds": own,
        })  # fmt: skip
    return rows


def _take_turns(
    name: str, workers: Sequence[Worker], options: argparse.Namespace
) -> list[list[tuple[float, int]]]:
    times: list[list[tuple[float, int]]] = [[] for _ in workers]
    total = (options.warmup + options.steps) * len(workers)
    with tqdm(total=total, desc=name, file=sys.stderr, disable=None) as bar:
        for worker in workers:
            for index in range(options.warmup):
                worker.call("step", index)
                bar.update()
            worker.call("start_timing")
        generator = random.Random(options.seed)
        for index in range(options.warmup, options.warmup + options.steps):
            for turn in generator.sample(range(len(workers)), len(workers)):
                times[turn].append(workers[turn].call("step", index))
                bar.update()
    return times


def format_rows(rows: Sequence[dict[str, Any]]) -> str:
    header = ("row", "precision", "parameters", "step s", "p10–p90", "× dense", "peak MB")
    lines = [
        (
            f"{row['model']} {row['name']}",
            row["precision"],
            f"{row['parameters']:,}",
            f"{row['step_s']['median']:.3f}",
            f"{row['step_s']['p10']:.3f}–{row['step_s']['p90']:.3f}",
            f"{row['step_ratio_to_dense']:.3f} ± {row['step_ratio_to_dense_error']:.3f}",
            f"{row['peak_bytes'] / 1e6:,.0f}",
        )
        for row in rows
    ]
    return harness.format_table(header, lines)


if __name__ == "__main__":
    sys.exit(main())

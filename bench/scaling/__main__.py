"""Training on more and more GPUs: `python -m bench.scaling --num_gpus 1,2,4,8`.

Each count is a training run under DeepSpeed's launcher, on a CPU machine with as many ranks:
`strong` takes the same rows a step at every count, `weak` the same rows a rank. Counts for which
there are not enough GPUs (on a CPU, cores) are predicted from the smallest measured one and marked;
the same prediction of the measured counts, their memory by holder included, shows how far to trust
it. With several JSONs of DeepSpeed, each has its rows: which of them is the quickest here?

On a CPU every rank has as many threads as at the largest measured count, on cores of its own.

Exit status: 0 done, 1 the ranks broke, 2 bad usage, configuration or data, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import harness
from bench.launcher import LaunchError, build_command, run_ranks
from bench.program import NUMBER, Options, at_least, parse_names, parse_numbers, run_program
from bench.scaling.plot import of_first_json, plot_rows
from bench.scaling.rows import NO_LINK, Link, StepModel, build_row, format_rows, predict_row
from bench.turns import pass_turn
from minimind.config.sizes import default_sizes
from minimind.errors import ConfigError
from minimind.rehearsal.rehearse import point_of, rehearse_all
from minimind.run.arguments import parse_arguments
from minimind.run.run import Run
from minimind.runtime.devices import Device, find_device

MODES = ("strong", "weak")
COUNTS = (1, 2, 4, 8)
_CPU_COUNTS = (1, 2)
"""More ranks on a CPU would share its memory's bandwidth and say nothing new."""


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(build_parser(), _measure_and_plot, argv)


def _measure_and_plot(options: argparse.Namespace) -> None:
    rows, machine = measure(options)
    print(format_rows(rows))
    if options.plot:
        plot_rows(of_first_json(rows), machine, options.plot)


def build_parser() -> Options:
    parser = Options("scaling", __doc__, must_write=False)
    add = parser.add
    add("plot", None, "picture of them", type=Path, metavar="PNG")
    add("num_gpus", ",".join(map(str, COUNTS)), "counts", metavar="A,B")
    add("modes", ",".join(MODES), "how rows are shared", metavar="A,B")
    add("model", "minimind2-small", "preset or JSON file", metavar="NAME")
    add("ds_config", ["zero2.json"], "rows for each", nargs="+", metavar="JSON")
    add("data", None, "JSON lines of text (default: the embedded sample data)", metavar="FILE")
    add("tokenizer", None, "its folder (default: the sample data's own)", metavar="DIR")
    add("seq_len", None, "tokens of a row (default: the preset's)", **NUMBER)
    add("micro_batch", None, "rows (default: the preset's)", **NUMBER)
    add("rows", None, "rows a step of the smallest count, and of all in strong scaling (default: a "
        "micro-batch for each rank of the largest)", **NUMBER)  # fmt: skip
    add("steps", 5, "timed steps", **NUMBER)
    add("warmup", 2, "steps before them; memory is measured in the second", type=at_least(2))
    add("threads", None, "of a rank on a CPU", **NUMBER)
    add("link_bytes_per_s", None, "each rank's way out, for predictions (default: measured where "
        "two ranks are)", type=float, metavar="X")  # fmt: skip
    add("link_latency_s", 2e-5, "beside it", type=float, metavar="X")
    add("set", [], "as for `minimind train`", action="append", metavar="KEY=VALUE")
    return parser


def measure(options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Gives the rows, written to the results file as each count is done, and the machine. Raises
    MiniMindError for what the user can mend, LaunchError where the ranks break."""
    counts = sorted(set(parse_numbers(options.num_gpus, "--num_gpus")))
    modes = parse_names(options.modes, "--modes", MODES)
    device = find_device()
    measured = [n for n in counts if n <= _available(device)]
    if not measured:
        raise ConfigError(f"--num_gpus {options.num_gpus}: there are not as many here")
    cores = len(os.sched_getaffinity(0))
    options.threads = options.threads or max(1, cores // measured[-1])
    micro = options.micro_batch or default_sizes(device.kind, options.model).micro_batch_size
    first_rows = options.rows or micro * counts[-1]
    if uneven := [n for n in counts if first_rows % (micro * n)]:
        raise ConfigError(
            f"--rows {first_rows} is no multiple of {uneven[0]} ranks x micro-batches of {micro}"
        )
    torch.set_num_threads(options.threads)
    machine = harness.describe_machine(device)
    print(
        f"{machine['device']}: {', '.join(map(str, measured))} ranks"
        + f" of {options.threads} thread(s) each" * (device.kind == "cpu")
    )
    plan = _plan(modes, counts, first_rows)
    done: list[dict[str, Any]] = []
    for ds_config in options.ds_config:
        flags = partial(_train_flags, options, ds_config, micro=micro)
        rows: list[dict[str, Any]] = []
        for mode, count, num_rows in plan:
            if count not in measured:
                continue
            base = next((row for row in rows if row["world_size"] == measured[0]), None)
            if count == measured[0] and base:
                rows.append({**base, "name": mode})
            else:
                pass_turn()
                found = _run(options, device, count, flags(num_rows))
                rows.append(build_row(mode, num_rows, found, device, base))
            _write(options, machine, [*done, *rows])
        predict(rows, _link(options, rows), plan, flags, device)
        done += sorted(rows, key=lambda row: (modes.index(row["name"]), row["world_size"]))
        _write(options, machine, done)
    return done, machine


def _write(
    options: argparse.Namespace, machine: dict[str, Any], rows: Sequence[dict[str, Any]]
) -> None:
    if options.json:
        harness.write_results(options.json, "scaling", machine, vars(options), rows)


def predict(
    rows: list[dict[str, Any]],
    link: Link | None,
    plan: Sequence[tuple[str, int, int]],
    flags: Callable[[int], list[str]],
    device: Device,
) -> None:
    """Adds the model's predictions to the measured rows, and appends rows for the counts that were
    not measured. Without a link it predicts a single rank alone."""
    if link is None and (left_out := {count for _, count, _ in plan} - {1}):
        print(f"{left_out} ranks not predicted: one alone has no link; give --link_bytes_per_s")
    plan = [point for point in plan if link or point[1] == 1]
    model, micro = StepModel.of(rows[0]), rows[0]["micro_batch"]
    runs = [
        Run.of(parse_arguments(flags(num_rows)), (device, count)) for _, count, num_rows in plan
    ]
    found = rehearse_all([point_of(run, run.resolved.arguments) for run in runs])
    for (mode, count, num_rows), rehearsed in zip(plan, found, strict=True):
        micro_batches = num_rows // (micro * count)
        predict_row(rows, model, link or NO_LINK, mode, count, micro_batches, rehearsed)


def _plan(modes: Sequence[str], counts: Sequence[int], rows: int) -> list[tuple[str, int, int]]:
    """Lists (mode, ranks, rows a step) of every run."""
    return [
        (mode, count, rows if mode == "strong" else rows // counts[0] * count)
        for mode in modes
        for count in counts
    ]


def _run(
    options: argparse.Namespace, device: Device, count: int, train_flags: Sequence[str]
) -> dict[str, Any]:
    flags = ["--timed_steps", str(options.steps), "--warmup_steps", str(options.warmup)]
    flags += ["--threads", str(options.threads), *train_flags]
    with tempfile.TemporaryDirectory(prefix="bench-scaling-") as folder:
        output, log = Path(folder) / "ranks.json", Path(folder) / "log"
        print(f"--- {count} rank(s): {' '.join(train_flags)}", flush=True)
        command = build_command("bench.scaling.rank", ["--output", str(output), *flags], count)
        run_ranks(command, device, log, threads=options.threads)
        if not output.is_file():
            raise LaunchError(f"the ranks left no results:\n{log.read_text()[-3000:]}")
        return json.loads(output.read_text(encoding="utf-8"))


def _train_flags(
    options: argparse.Namespace, ds_config: str, rows: int, *, micro: int
) -> list[str]:
    """Gives the run's flags, as `minimind train` takes them."""
    flags = ["--stage", "pretrain", "--model", options.model, "--ds_config", ds_config]
    flags += ["--eval_every", "0", "--save_every", "0", "--sample_every", "0"]
    for setting in (f"micro_batch_size={micro}", f"train_batch_size={rows}", *options.set):
        flags += ["--set", setting]
    for name in ("data", "tokenizer", "seq_len"):
        value = getattr(options, name)
        flags += [f"--{name}", str(value)] if value else []
    return flags


def _available(device: Device) -> int:
    return torch.cuda.device_count() if device.kind == "gpu" else len(os.sched_getaffinity(0))


def counts_here(device: Device) -> list[int]:
    """Lists the numbers of ranks that this machine can measure."""
    counts = COUNTS if device.kind == "gpu" else _CPU_COUNTS
    return [count for count in counts if count <= _available(device)]


def _link(options: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> Link | None:
    if options.link_bytes_per_s:
        return Link(options.link_bytes_per_s, options.link_latency_s, "given")
    found = [row["link"] for row in rows if row["link"]]
    return Link(found[-1]["bytes_per_s"], found[-1]["latency_s"], "measured") if found else None


if __name__ == "__main__":
    sys.exit(main())

"""Measures training on more and more GPUs: `python -m bench.scaling --num_gpus 1,2,4,8`.

Each number of ranks is a training run under DeepSpeed's launcher; on a CPU the ranks share the
machine. `strong` keeps the rows per step the same at every number, `weak` the rows per rank. Where
there are not enough GPUs (on a CPU, cores), the number is predicted from the smallest measured one
and marked. Measured numbers are predicted, too, with the memory by holder: this shows how far to
trust the predictions. With several DeepSpeed JSONs each has its own rows, which shows the quickest
on this machine.

On a CPU a rank has the same number of threads at every number of ranks, on its own cores: as many
as fit at the largest measured number.

Exit status: 0 done, 1 the ranks broke, 2 bad usage, configuration or data, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import harness
from bench.processes import own_environment, run_logged
from bench.program import (
    NUMBER,
    MeasurementError,
    Options,
    at_least,
    parse_names,
    parse_numbers,
    run_program,
)
from bench.scaling.rows import Link, StepModel, build_row, format_rows, predict_row
from bench.turns import pass_turn
from minimind.config.sizes import default_sizes
from minimind.errors import ConfigError
from minimind.rehearsal.rehearse import point_of, rehearse_all
from minimind.run.arguments import parse_arguments
from minimind.run.run import Run
from minimind.runtime.devices import Device, find_device
from minimind.runtime.ranks import free_port

MODES = ("strong", "weak")
COUNTS = (1, 2, 4, 8)
_CPU_COUNTS = (1, 2)
"""More ranks on a CPU would share its memory's bandwidth and say nothing new."""


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(build_parser(), lambda options: print(format_rows(measure(options))), argv)


def build_parser() -> Options:
    parser = Options("scaling", __doc__, must_write=False)
    add = parser.add
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
    add("set", [], "as for `minimind train`", action="append", metavar="KEY=VALUE")
    return parser


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Gives the rows, and writes them to the results file as each count is done. Raises
    MiniMindError for errors that the user can correct, MeasurementError where the ranks break."""
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
        links = [Link(**row["link"]) for row in rows if row["link"]]
        predict(rows, links[-1] if links else None, plan, flags, device)
        done += sorted(rows, key=lambda row: (modes.index(row["name"]), row["world_size"]))
        _write(options, machine, done)
    return done


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
    """Adds predictions to the measured rows, and appends rows for the numbers of ranks that were
    not measured. Without a link only one rank is predicted."""
    if link is None and (left_out := {count for _, count, _ in plan} - {1}):
        print(f"{left_out} ranks are not predicted: the link was not measured, which takes two")
    plan = [point for point in plan if link or point[1] == 1]
    model, micro = StepModel.of(rows[0]), rows[0]["micro_batch"]
    runs = [
        Run.of(parse_arguments(flags(num_rows)), (device, count)) for _, count, num_rows in plan
    ]
    found = rehearse_all([point_of(run, run.resolved.arguments) for run in runs])
    for (mode, count, num_rows), rehearsed in zip(plan, found, strict=True):
        micro_batches = num_rows // (micro * count)
        predict_row(rows, model, link, mode, count, micro_batches, rehearsed)


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
    """Runs bench.scaling.rank on `count` ranks of this machine. Raises MeasurementError where they
    break, and ConfigError where they refuse what they were given."""
    with tempfile.TemporaryDirectory(prefix="bench-scaling-") as folder:
        output, log = Path(folder) / "ranks.json", Path(folder) / "log"
        flags = ["--output", str(output), "--threads", str(options.threads)]
        flags += ["--timed_steps", str(options.steps), "--warmup_steps", str(options.warmup)]
        print(f"--- {count} rank(s): {' '.join(train_flags)}", flush=True)
        command = build_command("bench.scaling.rank", [*flags, *train_flags], count)
        status = run_logged(command, log, _environment(device, options.threads))
        if not status and output.is_file():
            return json.loads(output.read_text(encoding="utf-8"))
        said = log.read_text(encoding="utf-8", errors="replace")
    if refusal := re.search(r"^error: (.+)$", said, re.MULTILINE):
        raise ConfigError(refusal[1])
    raise MeasurementError(f"the ranks ended with exit status {status}:\n{said[-3000:]}")


def build_command(module: str, arguments: Sequence[str], num_ranks: int) -> list[str]:
    """Gives the command that runs a module on ranks of this machine through DeepSpeed's
    launcher."""
    launcher = str(Path(sys.executable).parent / "deepspeed")
    # An empty hostfile: the launcher would otherwise read /job/hostfile, where a machine has one.
    flags = ["--hostfile", os.devnull, "--master_port", str(free_port())]
    return [launcher, *flags, "--num_gpus", str(num_ranks), "--module", module, *arguments]


def _environment(device: Device, threads: int) -> dict[str, str]:
    # DeepSpeed looks for ninja on the path.
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = own_environment() | {"PATH": binaries, "OMP_NUM_THREADS": str(threads)}
    return environment | ({"DS_ACCELERATOR": "cpu"} if device.kind == "cpu" else {})


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


if __name__ == "__main__":
    sys.exit(main())

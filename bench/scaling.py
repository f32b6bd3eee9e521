"""Training on more and more GPUs: `python -m bench.scaling --num_gpus 1,2,4,8`.

Each count is a training run under DeepSpeed's launcher, on a CPU machine with as many ranks:
`strong` takes the same rows a step at every count, `weak` the same rows a rank. Counts for which
there are not enough GPUs (on a CPU, cores) are predicted from the smallest measured one and marked;
the same prediction of the measured counts shows how far to trust it.

On a CPU every rank has as many threads as at the largest measured count, on cores of its own.

Exit status: 0 done, 1 the ranks broke, 2 bad usage, configuration or data, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench import harness
from bench.launcher import LaunchError, build_command, read_hostfile, run_ranks
from bench.scaling_model import Link, build_model
from bench.scaling_plot import plot_rows
from bench.scaling_report import build_row, format_rows, predict_row
from bench.turns import pass_turn
from minimind.config.sizes import default_sizes
from minimind.errors import ConfigError
from minimind.rehearsal.rehearse import point_of, rehearse_all
from minimind.run.arguments import parse_arguments
from minimind.run.run import Run
from minimind.runtime.devices import Device, find_device
from minimind.runtime.logging import set_up_logging

MODES = ("strong", "weak")
COUNTS = (1, 2, 4, 8)
_CPU_COUNTS = (1, 2)
"""More ranks on a CPU would share its memory's bandwidth and say nothing new."""


def main(argv: Sequence[str] | None = None) -> int:
    set_up_logging(0)
    options = build_parser().parse_args(argv)
    return harness.run_program(lambda: _measure_and_plot(options))


def _measure_and_plot(options: argparse.Namespace) -> None:
    rows, machine = measure(options)
    print(format_rows(rows))
    if options.plot:
        plot_rows(rows, machine, options.plot)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.scaling",
        description="Measures training at several numbers of GPUs, and predicts those that are "
        "not here.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--json", type=Path, metavar="FILE", help="results file")
    add("--plot", type=Path, metavar="PNG", help="picture of them")
    add("--num_gpus", default=",".join(map(str, COUNTS)), metavar="A,B",
        help="counts (default: %(default)s)")  # fmt: skip
    add("--modes", default=",".join(MODES), metavar="A,B", help="default: strong,weak")
    add("--hostfile", type=Path, metavar="FILE", help="DeepSpeed's, for several machines")
    add("--model", default="minimind2-small", help="preset or JSON file (default: %(default)s)")
    add("--ds_config", default="zero2.json", help="default: %(default)s")
    add("--data", metavar="FILE", help="JSON lines of text (default: the embedded sample data)")
    add("--tokenizer", metavar="DIR", help="its folder (default: the sample data's own)")
    add("--seq_len", type=int, metavar="N", help="tokens of a row (default: the preset's)")
    add("--micro_batch", type=int, metavar="N", help="rows (default: the preset's)")
    add("--rows", type=int, metavar="N", help="rows a step of the smallest count, and of all in "
        "strong scaling (default: a micro-batch for each rank of the largest)")  # fmt: skip
    add("--steps", type=int, default=5, metavar="N", help="timed steps (default: 5)")
    add("--warmup", type=int, default=2, metavar="N", help="2 or more before (default: 2)")
    add("--threads", type=int, metavar="N", help="of a rank on a CPU")
    add("--link_bytes_per_s", type=float, metavar="X", help="each rank's way out, for predictions "
        "(default: measured where two ranks are)")  # fmt: skip
    add("--link_latency_s", type=float, default=2e-5, metavar="X", help="beside it (2e-5)")
    add("--set", default=[], action="append", metavar="KEY=VALUE", help="as for launch/train.py")
    return parser


def measure(options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows, written to the results file as each count is done, and the machine. Raises
    MiniMindError for what the user can mend, LaunchError where the ranks break."""
    counts, modes = _counts(options.num_gpus), _modes(options.modes)
    if options.warmup < 2 or options.steps < 1:
        raise ConfigError("--warmup takes 2 or more (memory is measured in it), --steps 1 or more")
    if options.json:
        harness.check_writable(options.json)
    device = find_device()
    measured = [n for n in counts if n <= _available(options.hostfile, device)]
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
    rows: list[dict[str, Any]] = []
    for mode, count, num_rows in _plan(modes, counts, first_rows):
        if count not in measured:
            continue
        base = next((row for row in rows if row["world_size"] == measured[0]), None)
        if count == measured[0] and base:
            rows.append({**base, "name": mode})
        else:
            pass_turn()
            found = _run(options, device, count, num_rows, micro)
            rows.append(build_row(mode, num_rows, found, device, base))
        _write(options, machine, rows)
    if link := _link(options, rows):
        predict(options, rows, link, _plan(modes, counts, first_rows), device)
        rows.sort(key=lambda row: (modes.index(row["name"]), row["world_size"]))
    elif len(measured) < len(counts):
        print("no prediction: one rank alone has no link; give --link_bytes_per_s")
    _write(options, machine, rows)
    return rows, machine


def _write(
    options: argparse.Namespace, machine: dict[str, Any], rows: Sequence[dict[str, Any]]
) -> None:
    if options.json:
        harness.write_results(options.json, "scaling", machine, vars(options), rows)


def predict(
    options: argparse.Namespace,
    rows: list[dict[str, Any]],
    link: Link,
    plan: Sequence[tuple[str, int, int]],
    device: Device,
) -> None:
    """Adds to the measured rows what the model says of them, and the rows that are not measured."""
    model = build_model(rows[0], device.kind)
    micro = rows[0]["micro_batch"]
    runs = [
        Run.of(parse_arguments(_train_flags(options, num_rows, micro)), (device, count))
        for _, count, num_rows in plan
    ]
    found = rehearse_all([point_of(run, run.resolved.arguments) for run in runs])
    for (mode, count, num_rows), rehearsed in zip(plan, found, strict=True):
        predict_row(rows, model, link, mode, count, num_rows // (micro * count), rehearsed)


def _plan(modes: Sequence[str], counts: Sequence[int], rows: int) -> list[tuple[str, int, int]]:
    """(mode, ranks, rows a step) of every run."""
    return [
        (mode, count, rows if mode == "strong" else rows // counts[0] * count)
        for mode in modes
        for count in counts
    ]


def _run(
    options: argparse.Namespace, device: Device, count: int, rows: int, micro: int
) -> dict[str, Any]:
    flags = ["--timed_steps", str(options.steps), "--warmup_steps", str(options.warmup)]
    flags += ["--threads", str(options.threads), *_train_flags(options, rows, micro)]
    # Beside the results or here: with a hostfile it must be a folder that the first host has too.
    parent = options.json.parent if options.json else Path()
    with tempfile.TemporaryDirectory(dir=parent, prefix=".scaling-") as folder:
        output, log = Path(folder).resolve() / "ranks.json", Path(folder) / "log"
        flags += ["--output", str(output)]
        print(f"--- {count} rank(s), {rows} rows a step", flush=True)
        command = build_command("bench.scaling_rank", flags, count, options.hostfile)
        run_ranks(command, device, log, threads=options.threads)
        if not output.is_file():
            raise LaunchError(f"the ranks left no results:\n{log.read_text()[-3000:]}")
        return json.loads(output.read_text(encoding="utf-8"))


def _train_flags(options: argparse.Namespace, rows: int, micro: int) -> list[str]:
    """As launch/train.py takes them."""
    flags = ["--stage", "pretrain", "--model", options.model, "--ds_config", options.ds_config]
    flags += ["--eval_every", "0", "--save_every", "0", "--sample_every", "0"]
    for setting in (f"micro_batch_size={micro}", f"train_batch_size={rows}", *options.set):
        flags += ["--set", setting]
    for name in ("data", "tokenizer", "seq_len"):
        value = getattr(options, name)
        flags += [f"--{name}", str(value)] if value else []
    return flags


def _available(hostfile: Path | None, device: Device) -> int:
    if hostfile:
        return sum(read_hostfile(hostfile).values())
    return torch.cuda.device_count() if device.kind == "gpu" else len(os.sched_getaffinity(0))


def counts_here(device: Device) -> list[int]:
    """Numbers of ranks that this machine can be measured with."""
    counts = COUNTS if device.kind == "gpu" else _CPU_COUNTS
    return [count for count in counts if count <= _available(None, device)]


def _link(options: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> Link | None:
    if options.link_bytes_per_s:
        return Link(options.link_bytes_per_s, options.link_latency_s, "given")
    found = [row["link"] for row in rows if row["link"]]
    return Link(found[-1]["bytes_per_s"], found[-1]["latency_s"], "measured") if found else None


def _counts(text: str) -> list[int]:
    try:
        counts = sorted({int(part) for part in text.split(",")})
    except ValueError:
        counts = []
    if not counts or counts[0] < 1:
        raise ConfigError(f"--num_gpus {text}: give counts, as in 1,2,4,8")
    return counts


def _modes(text: str) -> list[str]:
    modes = [part.strip() for part in text.split(",")]
    if unknown := [mode for mode in modes if mode not in MODES]:
        raise ConfigError(f"--modes {unknown[0]}: the modes are {', '.join(MODES)}")
    return modes


if __name__ == "__main__":
    sys.exit(main())

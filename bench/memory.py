"""What a rank will hold, by holder, before a run: `python -m bench.memory --model M`.

Rehearsed as by `launch/train.py --dry_run`, for as many DeepSpeed JSONs as are given; `--measure`
takes the same step of the same run too, on one rank.

Exit status: 0 done, 1 a measurement is further from its prediction than --within, 2 bad usage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import harness
from bench.workers import Worker
from minimind.config.sizes import default_sizes
from minimind.errors import ConfigError
from minimind.rehearsal.holders import HOLDERS
from minimind.rehearsal.rehearse import point_of, rehearse_all
from minimind.run.arguments import parse_arguments
from minimind.run.flags import TrainArguments
from minimind.run.run import Run
from minimind.runtime.devices import Device, find_device
from minimind.runtime.logging import set_up_logging
from minimind.runtime.memory import PeakMemory

_WARMUP, _STEPS = 2, 4
"""A rehearsal's: of four steps the third is looked at."""


def main(argv: Sequence[str] | None = None) -> int:
    set_up_logging(0)
    options = build_parser().parse_args(argv)
    return harness.run_program(lambda: check(options))


def check(options: argparse.Namespace) -> int:
    """Prints the predictions; 1 where one lies further from what was measured than `--within`."""
    if options.json:
        harness.check_writable(options.json)
    rows = list_rows(options)
    print(format_rows(rows))
    if options.json:
        machine = harness.describe_machine(find_device())
        harness.write_results(options.json, "memory", machine, vars(options), rows)
    apart = [row["predicted_to_measured"] for row in rows if row["predicted_to_measured"]]
    return int(any(abs(ratio - 1) > options.within for ratio in apart))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__)
    add = parser.add_argument
    add("--model", default="minimind2-small", help="preset or JSON file (default: %(default)s)")
    add(
        "--ds_config", nargs="+", default=["zero2.json"], metavar="JSON", help="default: zero2.json"
    )
    add("--num_gpus", type=int, default=1, metavar="N", help="ranks (default: 1)")
    add("--seq_len", type=int, metavar="N", help="tokens of a row (default: the preset's)")
    add("--micro_batch", type=int, metavar="N", help="rows (default: the preset's)")
    add("--accumulation", type=int, default=4, metavar="N", help="micro-batches (default: 4)")
    add("--set", default=[], action="append", metavar="KEY=VALUE", help="as for launch/train.py")
    add("--measure", action="store_true", help="on one rank, beside the prediction")
    add("--within", type=float, default=0.05, help="share a prediction may be off (default: 0.05)")
    add("--json", type=Path, metavar="FILE", help="results file")
    return parser


def list_rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each JSON. Raises MiniMindError."""
    if options.measure and options.num_gpus > 1:
        raise ConfigError("--measure measures one rank; bench.scaling measures several")
    device = find_device()
    runs = {name: resolve(options, name, device) for name in options.ds_config}
    found = rehearse_all([point_of(run, run.resolved.arguments) for run in runs.values()])
    measured = _measure(runs) if options.measure else {}
    return [
        {
            "name": "memory",
            "model": options.model,
            "ds_config": name,
            "world_size": options.num_gpus,
            "micro_batch": run.resolved.micro_batch_size,
            "seq_len": run.resolved.seq_len,
            "predicted": {**rehearsed.peak, "peak_bytes": rehearsed.peak_bytes},
            "peak_bytes": measured.get(name),
            "predicted_to_measured": rehearsed.peak_bytes / peak
            if (peak := measured.get(name))
            else None,
        }
        for (name, run), rehearsed in zip(runs.items(), found, strict=True)
    ]


def resolve(options: argparse.Namespace, ds_config: str, device: Device) -> Run:
    """Gives the run of one JSON."""
    micro = options.micro_batch or default_sizes(device.kind, options.model).micro_batch_size
    rows = micro * options.accumulation * options.num_gpus
    argv = ["--model", options.model, "--ds_config", ds_config]
    argv += ["--seq_len", str(options.seq_len)] if options.seq_len else []
    argv += ["--max_steps", str(_STEPS)]
    settings = [*options.set, f"micro_batch_size={micro}", f"train_batch_size={rows}"]
    for setting in settings:
        argv += ["--set", setting]
    return Run.of(parse_arguments(argv), (device, options.num_gpus))


class MeasuredRun:
    """A run in a process of its own, on which its memory is measured."""

    def __init__(self, arguments: TrainArguments) -> None:
        self._arguments = arguments

    def measure(self) -> int:
        """Takes the steps of a rehearsal; gives the peak bytes of the one that it looks at."""
        run = Run.of(self._arguments).build()
        for _ in range(_WARMUP):
            run.step()
        memory = PeakMemory(run.resolved.device.torch_device)
        with memory.measured():
            run.step()
        return memory.peak_bytes


def _measure(runs: Mapping[str, Run]) -> dict[str, int]:
    """Peak bytes, by JSON. Raises WorkerError."""
    found = dict[str, int]()
    for name, run in runs.items():
        worker = Worker(name, MeasuredRun, run.resolved.arguments)
        try:
            found[name] = worker.call("measure")
        finally:
            worker.close()
    return found


def format_rows(rows: Sequence[dict[str, Any]]) -> str:
    """MB by holder, of those that hold something; the last column says how the rehearsal did."""
    holders = [h for h in HOLDERS if any(row["predicted"].get(h) for row in rows)]
    header = ("model", "JSON", "ranks", *holders, "peak MB",
              "measured MB", "rehearsed / measured")  # fmt: skip
    return harness.format_table(header, [_cells(row, holders) for row in rows])


def _cells(row: dict[str, Any], holders: Sequence[str]) -> list[str]:
    parts, peak = row["predicted"], row["peak_bytes"]
    return [
        row["model"],
        row["ds_config"],
        str(row["world_size"]),
        *(f"{parts.get(holder, 0) / 1e6:,.1f}" for holder in holders),
        f"{parts['peak_bytes'] / 1e6:,.1f}",
        f"{peak / 1e6:,.1f}" if peak else "not measured",
        f"{row['predicted_to_measured']:.3f}" if peak else "–",
    ]


if __name__ == "__main__":
    sys.exit(main())

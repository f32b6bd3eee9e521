"""One step, one gradient, however it is split: `python -m bench.gradient_audit`.

The same documents are trained on as micro-batch x accumulation x ranks, under each DeepSpeed JSON
and in two packings, dense and with experts, through the real engine and DeepSpeed's launcher. Each
split's gradient is compared with plain autograd's: a loss that is a mean of means, an all-reduce
that is missing and a sum kept in bf16 each lie far outside the bound of their dtype.

Exit status: 0 every split within its bound, 1 one is not or broke, 2 bad usage or configuration.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench import harness
from bench.gradient_splits import ROWS, Split, list_splits, measure
from bench.launcher import LaunchError, build_command, run_ranks
from minimind.engine.deepspeed_engine import start_ranks, stop_ranks
from minimind.errors import MiniMindError
from minimind.runtime.devices import Device, find_device, limit_threads
from minimind.runtime.logging import set_up_logging
from minimind.runtime.ranks import Ranks, read_ranks

logger = logging.getLogger("bench.gradient_audit")

DS_CONFIGS = ("zero0.json", "zero1.json", "zero2.json", "zero3.json")


def main(argv: Sequence[str] | None = None) -> int:
    set_up_logging(read_ranks().rank)
    options = build_parser().parse_args(argv)
    try:
        if options.part is not None:
            return run_part(options)
        return audit(options)
    except MiniMindError as error:
        if read_ranks().is_main:
            logger.error("error: %s", error)
        return 2
    except LaunchError as error:
        logger.error("error: %s", error)
        return 1


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.gradient_audit", description=__doc__)
    parser.add_argument("--model", default="tiny", help="preset or JSON file (default: tiny)")
    parser.add_argument(
        "--ds_config", nargs="+", default=list(DS_CONFIGS), metavar="JSON",
        help=f"what is audited (default: {' '.join(DS_CONFIGS)})",
    )  # fmt: skip
    parser.add_argument(
        "--ranks", type=_parse_ranks, default=[1, 2], metavar="A,B",
        help=f"numbers of ranks, each a divisor of {ROWS} (default: 1,2)",
    )  # fmt: skip
    parser.add_argument("--seq_len", type=int, default=48, help="tokens of a row (default: 48)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="results file")
    # What a rank is started with.
    parser.add_argument("--part", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    return parser


def _parse_ranks(text: str) -> list[int]:
    counts = [int(part) for part in text.split(",")]
    if bad := [n for n in counts if n < 1 or ROWS % n]:
        raise argparse.ArgumentTypeError(f"{bad[0]} does not divide the step's {ROWS} rows")
    return counts


def audit(options: argparse.Namespace) -> int:
    """Starts the ranks of each number and prints what they found. Raises ConfigError."""
    device = find_device()
    if options.json:
        harness.check_writable(options.json)
    rows: list[dict[str, Any]] = []
    for count in options.ranks:
        if device.kind == "gpu" and count > torch.cuda.device_count():
            logger.warning("%d ranks: not audited, there are fewer GPUs", count)
            continue
        rows += _launch(options, count, device)
    print(harness.format_table(_HEADER, [_cells(row) for row in rows]))
    for precision in sorted({row["precision"] for row in rows}):
        worst = max(
            (row for row in rows if row["precision"] == precision),
            key=lambda row: row["deviation"] / row["bound"],
        )
        print(f"{precision}: largest {worst['deviation']:.1e} of {worst['bound']:.1e} allowed")
    if options.json:
        arguments = {"model": options.model, "ranks": options.ranks, "seq_len": options.seq_len}
        machine = harness.describe_machine(device)
        harness.write_results(options.json, "gradient_audit", machine, arguments, rows)
    wrong = [row for row in rows if not row["is_one_gradient"]]
    if wrong:
        logger.error("%d of %d splits have another gradient", len(wrong), len(rows))
    return int(bool(wrong))


_HEADER = ("model", "precision", "JSON", "ranks", "micro x accumulation", "packing", "deviation",
           "bound", "where most", "one gradient")  # fmt: skip


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["model"], row["precision"], row["ds_config"], str(row["ranks"]),
        f"{row['micro_batch']} x {row['accumulation']}", str(row["packing"]),
        f"{row['deviation']:.1e}", f"{row['bound']:.1e}", row["tensor"],
        "yes" if row["is_one_gradient"] else "NO",
    ]  # fmt: skip


def _launch(options: argparse.Namespace, ranks: int, device: Device) -> list[dict[str, Any]]:
    """The rows of all splits on so many ranks, from processes that DeepSpeed's launcher starts."""
    threads = max(1, len(os.sched_getaffinity(0)) // ranks)
    with tempfile.TemporaryDirectory(prefix="gradient-audit-") as folder:
        part, log = Path(folder) / "rows.json", Path(folder) / "log"
        flags = ["--part", str(part), "--model", options.model, "--seq_len", str(options.seq_len)]
        flags += ["--ds_config", *options.ds_config]
        command = build_command("bench.gradient_audit", flags, ranks)
        run_ranks(command, device, log, threads=threads)
        return json.loads(part.read_text(encoding="utf-8"))


def run_part(options: argparse.Namespace) -> int:
    """A rank's share: every split at this number of ranks; the first writes the rows."""
    ranks = read_ranks(options.local_rank)
    device = find_device(ranks.local_rank)
    limit_threads(ranks.local_world_size)
    start_ranks(ranks, device)
    splits = list_splits(options.ds_config, ranks.world_size)
    rows = list(audit_splits(splits, options.model, options.seq_len, device, ranks))
    if ranks.is_main:
        options.part.write_text(json.dumps(rows), encoding="utf-8")
    stop_ranks()
    return 0


def audit_splits(
    splits: Sequence[Split], model: str, seq_len: int, device: Device, ranks: Ranks
) -> Iterator[dict[str, Any]]:
    """A row of each; none on ranks other than the first."""
    for split in splits:
        if (found := measure(split, model, seq_len, device, ranks)) is None:
            continue
        yield {
            "name": f"{split.model} {split.precision} {split.ds_config}",
            **asdict(split),
            "accumulation": split.accumulation,
            "deviation": found.largest,
            "tensor": found.tensor,
            "bound": found.bound,
            # Not a number is no gradient at all.
            "is_one_gradient": found.largest <= found.bound,
        }


if __name__ == "__main__":
    sys.exit(main())

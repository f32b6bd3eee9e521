"""Tells whether a commit made anything slower or larger: `python -m bench.gate BASE HEAD`.

Both commits are measured in pairs of runs on this machine. The two runs of a pair take turns, round
by round, in random order; before each turn a probe measures the speed of the machine. Pairs are
added until three standard errors of the median ratio are within 5%, or the time is up. Exact counts
are taken from one run. The part `scaling` trains on 1, 2, 4 and 8 GPUs, as many as are here, on a
CPU with one and two ranks; each number of ranks is a row of its own. The report is Markdown.

Without --parts, the parts that a changed file affects are measured. Where no file differs, all are:
`bench.gate HEAD HEAD` finds the noise of the machine.

Exit status: 0 nothing got worse, 1 something did or the head cannot be measured (counting without
storage fails where the host asks for a value), 2 bad usage, 3 too noisy to tell.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench import harness
from bench.ceilings import probe_product
from bench.gate.turns import Program, run_in_turns
from bench.gate.verdict import (
    Comparison,
    Pair,
    Run,
    is_ours,
    needs_more_pairs,
    overall,
    render_report,
    row_key,
)
from bench.harness import ROOT
from bench.program import NUMBER, MeasurementError, Options, parse_names, run_program
from bench.scaling.__main__ import counts_here
from minimind.errors import ConfigError
from minimind.runtime.devices import Device, find_device, limit_threads

logger = logging.getLogger("bench.gate")

WORKING_TREE = "."
"""The name for the working tree's files, committed or not."""
_TRAINING = (
    "kernels/", "minimind/config/", "minimind/data/", "minimind/engine/", "minimind/model/",
    "minimind/run/", "minimind/runtime/", "minimind/stages/", "minimind/types.py",
    "constraints.txt", "ds_configs/",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Part:
    """Describes a part of the gate: a program that measures our own rows. The rows of rivals did
    not change."""

    command: str
    affected_by: tuple[str, ...]
    """The beginnings of the paths of files that can slow it down."""
    quick: str = ""
    """The flags of small batches."""
    counted_on: tuple[str, ...] = ()
    """The kinds of device on which the part only counts and measures no times, so that one run of
    each commit is enough."""


PARTS = {
    "step_counts": Part(
        "bench.train.step_counts",
        (*_TRAINING, "minimind/rehearsal/", "bench/train/step_counts"),
        counted_on=("cpu", "gpu"),
    ),
    # With fewer steps, those that meet a shape for the first time could be the median.
    "train": Part(
        "bench.train --model {model} --rows plain_loop,engine --accumulation 2 --steps 40",
        (*_TRAINING, "bench/train/", "bench/workers"),
        quick="--micro_batch 4",
    ),
    # As in a run: the same rows per step, whatever the number of ranks.
    "scaling": Part(
        "bench.scaling --model {model} --num_gpus {counts} --modes strong --steps 20",
        (*_TRAINING, "bench/scaling/", "bench/processes", "bench/train/"),
        quick="--micro_batch 4 --steps 10",
    ),
    "kernels": Part("bench.kernels", ("kernels/", "bench/kernel"), counted_on=("cpu",)),
    "inference": Part(
        "bench.inference --model {model} --rows minimind --clients none",
        ("kernels/", "minimind/inference/", "minimind/model/", "bench/inference/"),
        quick="--batch 1,8 --new 64 --rounds 3",
    ),
}


class BrokenHeadError(MeasurementError):
    """Reports that a benchmark fails at the head commit; the message ends with the benchmark's
    output."""


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(build_parser(), judge, argv)


def judge(options: argparse.Namespace) -> int:
    """Prints the report and writes it; gives the exit status. Raises ConfigError for commits or
    parts that are not there."""
    try:
        found = compare(options)
    except BrokenHeadError:
        print(f"### Benchmarks: worse\n\n`{options.head}` cannot be measured any more.")
        raise
    if found is None:
        print("nothing that is measured has changed")
        return 0
    machine = harness.describe_machine(find_device())
    print(render_report(found, options.base, options.head, machine))
    if options.json:
        rows = [c.to_dict() for c in found]
        arguments = {"base": options.base, "head": options.head, "budget_s": options.budget_s}
        harness.write_results(options.json, "compare", machine, arguments, rows)
    return {"worse": 1, "too noisy": 3}.get(overall(found), 0)


def build_parser() -> Options:
    parser = Options("gate", __doc__, must_write=False)
    parser.add_argument("base", help="a commit, or . for the files as they are")
    parser.add_argument("head", help="the same")
    add = parser.add
    add("parts", None, f"some of {','.join(PARTS)} (default: those that a changed file affects)")
    add("pairs", 5, "pairs at least", **NUMBER)
    add("budget_s", 1200.0, "seconds", type=float, metavar="X")
    add("model", None, "preset (default: by device)")
    add("quick", False, "small batches: as on a CPU", action="store_true")
    return parser


def compare(options: argparse.Namespace) -> list[Comparison] | None:
    """Measures both commits; gives None where no changed file affects a part. Raises ConfigError
    for commits or parts that are not there."""
    base, head = _resolve(options.base), _resolve(options.head)
    if options.parts:
        parts = parse_names(options.parts, "--parts", list(PARTS))
    elif not (parts := affected_parts(changed_files(base, head))):
        return None
    device = find_device()
    limit_threads(1)
    quick = options.quick or device.kind == "cpu"
    model = options.model or ("tiny" if quick else "minimind2-small")
    counts = ",".join(map(str, counts_here(device)))
    commands = {
        part: [
            *PARTS[part].command.format(model=model, counts=counts).split(),
            *(PARTS[part].quick.split() if quick else ()),
        ]
        for part in parts
    }
    timed = {p: commands[p] for p in parts if device.kind not in PARTS[p].counted_on}
    pairs: list[Pair] = []
    end = time.monotonic() + options.budget_s
    with (
        tempfile.TemporaryDirectory(prefix="bench-gate-") as temporary,
        _checkout(base, Path(temporary) / "base") as base_folder,
        _checkout(head, Path(temporary) / "head") as head_folder,
        tqdm(desc="pairs", file=sys.stderr, disable=None) as bar,
    ):
        folders = {"base": base_folder, "head": head_folder}
        wanted = commands
        while wanted:
            pairs.append(_measure_pair(wanted, folders, Path(temporary), device))
            bar.update()
            if time.monotonic() > end:
                break
            wanted = timed
            if len(pairs) >= options.pairs:
                wanted = {p: timed[p] for p in timed if needs_more_pairs(pairs, p)}
    keys = {key for pair in pairs for run in (pair.base, pair.head) for key in run.rows}
    return [Comparison.build(key, pairs) for key in sorted(keys)]


def affected_parts(files: Sequence[str]) -> list[str]:
    """Lists the parts that a changed file can slow down. Where no file has changed, all parts are
    listed, to measure how much the same code differs from itself."""
    if not files:
        return list(PARTS)
    return [p for p, part in PARTS.items() if any(f.startswith(part.affected_by) for f in files)]


def changed_files(base: str, head: str) -> list[str]:
    """Lists the files that differ between two commits. Where one is the working tree, uncommitted
    and new files are listed, too."""
    commits = [commit for commit in (base, head) if commit != WORKING_TREE]
    files = _git("diff", "--name-only", *commits).split() if commits else []
    if WORKING_TREE in (base, head):
        files += _git("ls-files", "--others", "--exclude-standard").split()
    return files


def _resolve(commit: str) -> str:
    if commit == WORKING_TREE:
        return commit
    return _git("rev-parse", "--verify", f"{commit}^{{commit}}").strip()


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ConfigError(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


@contextlib.contextmanager
def _checkout(commit: str, folder: Path) -> Iterator[Path]:
    if commit == WORKING_TREE:
        yield ROOT
        return
    _git("worktree", "add", "--detach", "--quiet", str(folder), commit)
    try:
        yield folder
    finally:
        _git("worktree", "remove", "--force", str(folder))


def _measure_pair(
    commands: Mapping[str, Sequence[str]],
    folders: Mapping[str, Path],
    temporary: Path,
    device: Device,
) -> Pair:
    """Measures every part at both commits, each with its own commit's benchmark. A part that the
    base cannot measure has no rows there. Raises BrokenHeadError where the head cannot measure it.
    """
    probes: dict[str, list[float]] = {side: [] for side in folders}
    rows: dict[str, dict[str, Mapping[str, Any]]] = {side: {} for side in folders}
    results = {side: temporary / f"{side}.json" for side in folders}
    for part, command in commands.items():
        programs = {
            side: Program(
                [sys.executable, "-m", *command, "--json", str(results[side])],
                folder := folders[side],
                # No path of this checkout: a module that the commit lacks must not be found here.
                os.environ | {"PYTHONPATH": f"{folder / 'kernels'}{os.pathsep}{folder}"},
            )
            for side in random.sample(list(folders), 2)
        }
        for path in results.values():
            path.unlink(missing_ok=True)
        ended = run_in_turns(programs, lambda side: probes[side].append(probe_product(device)))
        for side, path in results.items():
            if ended[side].status or not path.exists():
                message = f"{part} at {side} failed: {ended[side].errors[-2000:]}"
                if side == "head":
                    raise BrokenHeadError(message)
                logger.warning("%s", message)
                continue
            found = json.loads(path.read_text(encoding="utf-8"))["rows"]
            rows[side] |= {row_key(part, row): row for row in found if is_ours(row)}
    base, head = (Run(statistics.mean(probes[side]), rows[side]) for side in ("base", "head"))
    return Pair(base=base, head=head)


if __name__ == "__main__":
    sys.exit(main())

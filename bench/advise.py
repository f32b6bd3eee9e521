"""Which DeepSpeed JSON for this model on this machine: `python -m bench.advise --model M`.

Plain data parallel (stage 0) and ZeRO 1 to 3 are measured through the launcher, each with the
largest micro-batch that is predicted to fit; then the quickest with other micro-batches, buckets
and overlap. What cannot fit is not tried, unless nothing fits: then the optimizer is offloaded.
The quickest is written as a JSON, with the reason; of equals the smallest.

Exit status: 0 done, 1 a measurement broke, 2 bad usage, 3 nothing fits.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

from bench import harness
from bench.advise_candidates import (
    STAGES,
    Candidate,
    Setting,
    largest_that_fit,
    rehearse_candidates,
    variants,
)
from bench.launcher import LaunchError
from minimind.config.sizes import default_sizes
from minimind.errors import ConfigError
from minimind.rehearsal.report import Rehearsal
from minimind.runtime.devices import find_device
from minimind.runtime.logging import set_up_logging

logger = logging.getLogger("bench.advise")

_FILLED = 0.9
"""Of the memory: what the allocator cannot hand out and what libraries take is in no rehearsal."""
_EQUAL = 0.02
"""Rates this close are equal."""


@dataclass(slots=True)
class Trial:
    """A candidate and what was found of it."""

    candidate: Candidate
    rehearsed: Rehearsal
    rates: list[float] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Useful tokens/s over all ranks."""
        return statistics.median(self.rates)

    def to_dict(self, setting: Setting) -> dict[str, Any]:
        return {
            "name": self.candidate.name,
            "model": setting.model,
            "world_size": setting.num_ranks,
            "zero_stage": self.candidate.stage,
            "micro_batch": self.candidate.micro_batch,
            "useful_tokens_per_s": self.rate if self.rates else None,
            "rates": self.rates,
            "peak_bytes": max(self.peaks, default=None),
            "predicted": {**self.rehearsed.peak, "peak_bytes": self.rehearsed.peak_bytes},
        }


def main(argv: Sequence[str] | None = None) -> int:
    set_up_logging(0)
    options = build_parser().parse_args(argv)
    return harness.run_program(lambda: advise(options))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.advise", description=__doc__)
    add = parser.add_argument
    add("--model", default="minimind2-small", help="preset or JSON file (default: %(default)s)")
    add("--num_gpus", type=int, default=1, metavar="N", help="ranks (default: 1)")
    add("--memory", type=float, metavar="GIB", help="of each (default: what the device has)")
    add("--rows", type=int, metavar="N", help="rows a step (default: the preset's)")
    add("--seq_len", type=int, metavar="N", help="tokens of a row (default: the preset's)")
    add("--micro_batch", type=int, metavar="N", help="the largest to try (default: the preset's)")
    add("--steps", type=int, default=5, metavar="N", help="timed steps of a run (default: 5)")
    add("--rounds", type=int, default=2, metavar="N", help="runs of each (default: 2)")
    add("--seed", type=int, default=0, metavar="N", help="of the order of runs")
    add("--output", type=Path, default=Path("ds_advised.json"), help="default: %(default)s")
    add("--json", type=Path, metavar="FILE", help="results file")
    return parser


def advise(options: argparse.Namespace) -> int:
    """Raises MiniMindError for what the user can mend, LaunchError where a run breaks."""
    if options.json:
        harness.check_writable(options.json)
    device = find_device()
    sizes = default_sizes(device.kind, options.model)
    rows = options.rows or max(sizes.train_batch_size, sizes.micro_batch_size * options.num_gpus)
    if options.num_gpus < 1 or rows % options.num_gpus:
        raise ConfigError(f"--rows {rows} is no multiple of --num_gpus {options.num_gpus}")
    setting = Setting(options.model, options.num_gpus, rows, options.seq_len, device)
    limit = int(_FILLED * (options.memory * 2**30 if options.memory else _memory(setting)))
    largest = options.micro_batch or sizes.micro_batch_size
    generator = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="bench-advise-") as name:
        folder = Path(name)
        trials, said = _stages(setting, largest, limit, folder)
        if not trials:
            print("\n".join(said))
            return 3
        _measure(trials, setting, options, folder, generator)
        best = choose(trials)
        others = list(variants(setting, best.candidate, setting.resolve().resolved.num_trained))
        more = [
            Trial(candidate, rehearsed)
            for candidate, rehearsed in rehearse_candidates(others, setting, folder).items()
            if rehearsed.peak_bytes <= limit
        ]
        # The winner runs once more beside them.
        _measure([best, *more], setting, options, folder, generator)
        trials += more
        best = choose(trials)
    text = json.dumps(best.candidate.ds_config(), indent=2) + "\n"
    options.output.write_text(text, encoding="utf-8")
    found = [trial.to_dict(setting) for trial in trials]
    print(format_rows(found))
    print("\n".join([*said, *explain(trials, best, setting, limit)]))
    print(f"written: {options.output}")
    if options.json:
        machine = harness.describe_machine(device)
        advised = {"best": best.candidate.name, "ds_config": best.candidate.ds_config()}
        harness.write_results(options.json, "advise", machine, vars(options), found, **advised)
    return 0


def _memory(setting: Setting) -> float:
    if setting.device.kind == "gpu":
        return torch.cuda.get_device_properties(setting.device.torch_device).total_memory
    return psutil.virtual_memory().available / setting.num_ranks


def _stages(
    setting: Setting, largest: int, limit: int, folder: Path
) -> tuple[list[Trial], list[str]]:
    """Each stage as it fits, and what is to be said of those that do not."""
    trials, said = [], []
    wanted = [Candidate(stage, largest) for stage in STAGES]
    for several in (wanted, [Candidate(2, largest, offload=True)]):
        if trials:
            break
        found = largest_that_fit(several, setting, limit, folder)
        for candidate, (fitting, rehearsed) in found.items():
            if rehearsed.peak_bytes <= limit:
                trials.append(Trial(fitting, rehearsed))
                continue
            said.append(
                f"{candidate.name.split(',')[0]}{' with offload' * candidate.offload}: does not "
                f"fit, {_mb(rehearsed.peak_bytes)} for one row against {_mb(limit)}"
            )
    return trials, said


def _measure(
    trials: Sequence[Trial],
    setting: Setting,
    options: argparse.Namespace,
    folder: Path,
    generator: random.Random,
) -> None:
    """Rounds of one run of each, in random order."""
    for _ in range(options.rounds):
        for trial in generator.sample(list(trials), len(trials)):
            path = folder / "results.json"
            command = [sys.executable, "-m", "bench.scaling", "--json", str(path)]
            command += ["--num_gpus", str(setting.num_ranks), "--modes", "strong"]
            command += ["--model", setting.model, "--rows", str(setting.rows)]
            command += ["--ds_config", str(trial.candidate.write(folder))]
            command += ["--micro_batch", str(trial.candidate.micro_batch)]
            command += ["--steps", str(options.steps)]
            command += ["--seq_len", str(setting.seq_len)] if setting.seq_len else []
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise LaunchError(f"{trial.candidate.name}: {done.stderr[-2000:]}")
            (row,) = json.loads(path.read_text(encoding="utf-8"))["rows"]
            trial.rates.append(row["useful_tokens_per_s"])
            trial.peaks.append(row["peak_bytes"])
            logger.info("%s: %s tokens/s", trial.candidate.name, f"{trial.rates[-1]:,.0f}")


def choose(trials: Sequence[Trial]) -> Trial:
    """The quickest; of those about as quick, the one that takes least memory."""
    quickest = max(trial.rate for trial in trials)
    equals = [trial for trial in trials if trial.rate >= (1 - _EQUAL) * quickest]
    return min(equals, key=lambda trial: max(trial.peaks))


def format_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """The quickest first."""
    header = ("model", "ranks", "candidate", "useful tokens/s", "runs", "peak MB", "rehearsed MB")
    return harness.format_table(
        header,
        [
            [
                row["model"],
                str(row["world_size"]),
                row["name"],
                f"{row['useful_tokens_per_s']:,.0f}",
                str(len(row["rates"])),
                f"{row['peak_bytes'] / 1e6:,.0f}",
                f"{row['predicted']['peak_bytes'] / 1e6:,.0f}",
            ]
            for row in sorted(rows, key=lambda row: -row["useful_tokens_per_s"])
        ],
    )


def explain(trials: Sequence[Trial], best: Trial, setting: Setting, limit: int) -> list[str]:
    """Why this one, and what each stage divides."""
    lines = [f"best: {best.candidate.name}, {best.rate:,.0f} useful tokens/s"]
    for trial in trials:
        if trial is not best and trial.rate >= (1 - _EQUAL) * best.rate:
            lines.append(f"as quick, but larger: {trial.candidate.name}")
    held = best.rehearsed.peak
    states = sum(held.get(part, 0) for part in ("weights", "masters", "optimizer", "gradients"))
    lines.append(
        f"a rank holds {_mb(best.rehearsed.peak_bytes)} of {_mb(limit)}: weights, gradients and "
        f"optimizer {_mb(states)}, activations {_mb(held.get('activations', 0))}, which no stage "
        "divides: a smaller micro-batch or activation_checkpointing does"
    )
    if setting.num_ranks == 1:
        lines.append(
            "ZeRO saves nothing on one rank: it divides states among ranks, and adds buckets and "
            "in fp32 a second copy of the weights"
        )
    return lines


def _mb(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"


if __name__ == "__main__":
    sys.exit(main())

"""Measures loss over the time of training, ours and others': `python -m bench.train.loss_curves
--json FILE`.

Each row of bench.train pretrains alone on the device for the same time, from the same weights, on
the same documents, at one learning rate. From time to time the clock stops, and the loss on
held-out documents is measured: for every row the mean over their targets.

Exit status: 0 done, 1 a row broke, 2 bad usage, configuration or data, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from bench import harness
from bench.harness import Columns, Row, shown
from bench.program import Options, parse_names, run_program
from bench.train.__main__ import build_parser as build_train_parser
from bench.train.documents import Documents, PaddedSteps, draw_documents, one_row
from bench.train.padded import PADDED_ROWS
from bench.train.rows import build_row
from bench.train.specs import DOCUMENT_TOKENS, RowSpec, all_rows, build_specs
from bench.workers import Worker, started
from minimind.data.tokenizer import Tokenizer
from minimind.errors import ConfigError
from minimind.runtime.devices import find_device, limit_threads
from minimind.samples.text import load_sample_tokenizer
from minimind.stages import STAGES

_HELD_OUT_TOKENS = 60_000
_HELD_OUT_ROWS = 8
"""The number of documents in a held-out batch."""
_STEPS = 100_000
"""The most steps of a row; data that holds less begins again."""
_ONE_RATE = ("warmup_steps=0", "min_lr_ratio=1")
"""No row has a schedule: how many steps it takes in its time is not known."""


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(build_parser(), measure, argv)


def build_parser() -> Options:
    """Adds the length of the curves to the options of bench.train."""
    parser = build_train_parser("train.loss_curves", __doc__)
    parser.add("minutes", 5.0, "of each row", type=float, metavar="X")
    parser.add("points", 20, "of each curve", type=int, metavar="N")
    parser.add("val_data", None, "held-out JSON lines (default: the sample data's)")
    parser.set_defaults(rows="original,engine", steps=_STEPS, warmup=0)
    return parser


def measure(options: argparse.Namespace) -> None:
    """Measures every curve. Raises MiniMindError for errors that the user can correct, WorkerError
    where a row breaks."""
    if options.stage != "pretrain":
        raise ConfigError(f"--stage {options.stage}: these are the curves of pretraining")
    device = find_device()
    limit_threads(1)
    names = parse_names(options.rows, "--rows", all_rows("pretrain"))
    tokenizer = Tokenizer.load(options.tokenizer) if options.tokenizer else load_sample_tokenizer()
    held_out = draw_documents(
        options.val_data,
        tokenizer,
        max_tokens=options.document_tokens or DOCUMENT_TOKENS,
        wanted_tokens=_HELD_OUT_TOKENS,
        seed=options.seed,
        split="val",
    )
    options.set = [*_ONE_RATE, *options.set]
    machine = harness.describe_machine(device)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="bench-start-") as folder:
        specs = build_specs(options, options.model, names, device, Path(folder))
        for done, spec in enumerate(specs):
            with started(CurveRow, [spec]) as (worker,):
                for row in _follow(worker, spec, held_out, options):
                    rows[done:] = [row]
                    # As it grows: a curve that is cut off is one up to there.
                    harness.write_results(options.json, "loss_curves", machine, vars(options), rows)
    print(_format(rows))
    print(f"written: {options.json}")


def _follow(
    worker: Worker, spec: RowSpec, held_out: Documents, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Yields the row after each point of its curve, with all points so far."""
    row = {
        "name": spec.name,
        "model": options.model,
        "ds_config": spec.ds_config_name,
        "learning_rate": spec.run.learning_rate,
        **worker.call("build"),
    }
    points: list[dict[str, Any]] = []
    bar = tqdm(range(options.points + 1), desc=spec.name, file=sys.stderr, disable=None)
    for number in bar:
        point = worker.call("train", options.minutes * 60 * number / options.points)
        points.append(point | {"loss": worker.call("held_out_loss", held_out)})
        if number:
            yield {**row, "points": points}


def _format(rows: Sequence[Row]) -> str:
    columns: Columns = {
        "row": lambda row: row["name"],
        "precision": lambda row: row["precision"],
        "seconds": lambda row: shown(row["points"][-1]["seconds"]),
        "steps": lambda row: shown(row["points"][-1]["steps"]),
        "useful tokens": lambda row: shown(row["points"][-1]["tokens"]),
        "loss at the start": lambda row: shown(row["points"][0]["loss"], ".3f"),
        "loss": lambda row: shown(row["points"][-1]["loss"], ".3f"),
    }
    return harness.format_rows(rows, columns)


class CurveRow:
    """Holds the methods of a row that the parent calls."""

    def __init__(self, spec: RowSpec) -> None:
        self._spec, self._device = spec, spec.run.device.torch_device
        self._seconds, self._steps, self._tokens = 0.0, 0, 0

    def build(self) -> dict[str, Any]:
        self._row = build_row(self._spec)
        return {"precision": self._row.precision, "threads": torch.get_num_threads()}

    def train(self, until: float) -> dict[str, Any]:
        """Takes steps until the row has trained for `until` seconds in all."""
        while self._seconds < until:
            start = time.perf_counter()
            loss = float(self._row.step())  # waits for the device
            self._seconds += time.perf_counter() - start
            self._tokens += self._row.steps.step(self._steps).num_tokens
            self._steps += 1
            if not np.isfinite(loss):
                raise FloatingPointError(f"step {self._steps}: the loss is {loss}")
        return {"seconds": self._seconds, "steps": self._steps, "tokens": self._tokens}

    @torch.no_grad()
    def held_out_loss(self, held_out: Documents) -> float:
        """Gives the mean loss over the targets of the held-out documents, which are padded or
        packed as the row trains."""
        spec, ids = self._spec, held_out.ids
        stage = STAGES[spec.run.stage](spec.run.recipe)
        padded = PaddedSteps(held_out, rows=_HELD_OUT_ROWS, accumulation=1, steps=1)
        total = count = 0.0
        for at in range(0, len(ids), _HELD_OUT_ROWS):
            some = ids[at : at + _HELD_OUT_ROWS]
            targets = sum(len(one) - 1 for one in some)
            if spec.name in PADDED_ROWS:
                batch = (x.to(self._device) for x in padded.pad(some))
                mean = float(self._row.loss(*batch))  # type: ignore[attr-defined]
            else:
                batch = one_row(some, held_out.pad_id).to(self._device)
                mean = float(stage.loss(self._row.module, batch).total) / targets
            total, count = total + mean * targets, count + targets
        return total / count


if __name__ == "__main__":
    sys.exit(main())

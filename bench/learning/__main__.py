"""Measures what a method of training learns from the same tokens: `python -m bench.learning --json
FILE`.

Each method trains the same model, alone on the device, from the same fresh weights, on the same
documents, until it has read --tokens of them; its learning-rate schedule spans the steps that these
tokens take. From time to time the clock stops, and the loss on held-out documents is measured: as
the mean over their targets, for every method. With several seeds, weights and order of documents
differ from seed to seed, and the methods take turns, seed by seed.

`original` trains as the original MiniMind does: one document a row, padded; fp32; a mean of means.
`earlier` trains with the defaults of this project before the study. Each other method changes one
thing of `default`.

Exit status: 0 done, 1 a method broke, 2 bad usage, configuration or data, 130 interrupted.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm import tqdm

from bench import harness
from bench.harness import Columns, shown
from bench.learning.curve import CurveRow
from bench.learning.methods import METHODS, Method
from bench.learning.specs import build_spec, draw_held_out
from bench.program import NUMBER, Options, at_least, parse_names, parse_numbers, run_program
from bench.train.documents import Documents
from bench.train.specs import DOCUMENT_TOKENS, RowSpec
from bench.workers import started
from minimind.runtime.devices import find_device, limit_threads


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(build_parser(), measure, argv)


def build_parser() -> Options:
    parser = Options("learning", __doc__)
    add = parser.add
    add("methods", "original,earlier,default", "which to measure; all: every one", metavar="A,B")
    add("model", "minimind2-small", "preset or JSON file", metavar="NAME")
    add("data", None, "JSON lines (default: the sample data)", metavar="FILE")
    add("val_data", None, "held-out JSON lines (default: the sample data's)", metavar="FILE")
    add("tokenizer", None, "its folder (default: the sample data's own)", metavar="DIR")
    add("tokens", 1_000_000, "tokens of each method, without padding", **NUMBER)
    add("points", 20, "of each curve", **NUMBER)
    add("seeds", "1", "of weights and of the order of documents", metavar="A,B")
    add("document_tokens", DOCUMENT_TOKENS, "documents are cut there", type=at_least(2),
        metavar="N")  # fmt: skip
    add("set", [], "as for `minimind train`, for every method", action="append",
        metavar="KEY=VALUE")  # fmt: skip
    return parser


def measure(options: argparse.Namespace) -> None:
    """Measures every curve. Raises MiniMindError for errors that the user can correct, WorkerError
    where a method breaks."""
    device = find_device()
    limit_threads(1)
    wanted = ",".join(METHODS) if options.methods == "all" else options.methods
    methods = [METHODS[name] for name in parse_names(wanted, "--methods", list(METHODS))]
    seeds = parse_numbers(options.seeds, "--seeds")
    held_out = draw_held_out(options)
    machine = harness.describe_machine(device)
    rows: list[dict[str, Any]] = []
    for done, (seed, method) in enumerate(itertools.product(seeds, methods)):
        spec = build_spec(options, method, seed, device)
        for row in _follow(method, seed, spec, held_out, options):
            rows[done:] = [row]
            # Written after each point, so that a curve that is cut off stays.
            harness.write_results(options.json, "learning", machine, vars(options), rows)
    print(harness.format_rows(rows, COLUMNS))
    print(f"written: {options.json}")


def _follow(
    method: Method, seed: int, spec: RowSpec, held_out: Documents, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Yields the row after each point of its curve, with all points so far."""
    with started(CurveRow, [spec]) as (worker,):
        row = {
            "name": method.name,
            "what": method.what,
            "seed": seed,
            "model": options.model,
            "ds_config": spec.ds_config_name,
            "learning_rate": spec.run.learning_rate,
            **worker.call("build"),
        }
        points: list[dict[str, Any]] = []
        title = f"{method.name}, seed {seed}"
        for number in tqdm(range(options.points + 1), title, file=sys.stderr, disable=None):
            point = worker.call("train", round(spec.steps * number / options.points))
            points.append(point | {"loss": worker.call("held_out_loss", held_out)})
            if number:
                yield {**row, "points": points}


COLUMNS: Columns = {
    "method": lambda row: row["name"],
    "seed": lambda row: str(row["seed"]),
    "precision": lambda row: row["precision"],
    "rate": lambda row: shown(row["learning_rate"], ".1e"),
    "steps": lambda row: shown(row["points"][-1]["steps"]),
    "useful tokens": lambda row: shown(row["points"][-1]["tokens"]),
    "seconds": lambda row: shown(row["points"][-1]["seconds"]),
    "loss at the start": lambda row: shown(row["points"][0]["loss"], ".3f"),
    "loss": lambda row: shown(row["points"][-1]["loss"], ".3f"),
}


if __name__ == "__main__":
    sys.exit(main())

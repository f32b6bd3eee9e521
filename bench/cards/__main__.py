"""Rehearses a pretraining step of each preset on common cards: `python -m bench.cards`.

Nothing is computed and no card is needed: memory is counted tensor by tensor, and the time is a
lower bound from the cards' data sheets (`minimind train --dry_run --on h100:8` shows one of them
with its parts). The results file is the same on every machine, so it lies beside those of devices,
in bench/results/rehearsed.

Exit status: 0 done, 2 bad usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from bench import harness
from bench.program import Options, parse_names, parse_numbers, run_program
from minimind.config.model import PRESETS
from minimind.rehearsal.rehearse import Point, known_device, rehearse_all
from minimind.rehearsal.report import Rehearsal
from minimind.run.arguments import collect_arguments
from minimind.runtime.devices import find_device

BENCHMARK = "cards"
FILE = harness.RESULTS / "rehearsed" / "cards.json"
CARDS = ("RTX 3090", "RTX 4090", "H100")
COUNTS = (1, 8)
MODELS = tuple(name for name in PRESETS if name != "tiny")
DS_CONFIG = "zero2.json"


def main(argv: Sequence[str] | None = None) -> int:
    parser = Options("cards", __doc__, must_write=False)
    parser.set_defaults(json=FILE)
    parser.add("cards", ",".join(CARDS), "names as --on takes them", metavar="A,B")
    parser.add("num_gpus", ",".join(map(str, COUNTS)), "counts of each card", metavar="A,B")
    parser.add("models", ",".join(MODELS), "presets", metavar="A,B")
    return run_program(parser, _run, argv)


def _run(options: argparse.Namespace) -> None:
    cards = [known_device(name) for name in parse_names(options.cards, "--cards")]
    counts = parse_numbers(options.num_gpus, "--num_gpus")
    models = parse_names(options.models, "--models", tuple(PRESETS))
    rows = rehearse_cards(models, cards, counts)
    # How quick this machine is says nothing about the cards.
    machine = harness.describe_machine(find_device()) | {"ceilings": None}
    arguments = {"cards": cards, "num_gpus": counts, "models": models}
    harness.write_results(options.json, BENCHMARK, machine, arguments, rows)
    print(f"written: {options.json}")


def rehearse_cards(
    models: Sequence[str], cards: Sequence[str], counts: Sequence[int]
) -> list[dict[str, Any]]:
    """Gives a row for each model on each number of each card. Raises ConfigError."""
    places = list(itertools.product(models, cards, counts))
    points = [
        Point(
            arguments=collect_arguments({"model": model, "ds_config": DS_CONFIG}),
            device=card,
            ranks=ranks,
        )
        for model, card, ranks in places
    ]
    return [
        _build_row(model, card, found)
        for (model, card, _), found in zip(places, rehearse_all(points), strict=True)
    ]


def _build_row(model: str, card: str, found: Rehearsal) -> dict[str, Any]:
    assert found.roofline is not None, "every GPU with a data sheet has one"
    return {
        "name": card,
        "model": model,
        "ds_config": DS_CONFIG,
        "world_size": found.world_size,
        "tokens_per_step": found.tokens,
        "least_step_s": found.roofline.step,
        "bound": found.roofline.bound,
        "peak_bytes": found.peak_bytes,
    }


def least_seconds(row: Mapping[str, Any], tokens: float) -> float:
    """Gives the least seconds in which the cards of a row can train on `tokens` tokens."""
    return tokens / row["tokens_per_step"] * row["least_step_s"]


if __name__ == "__main__":
    sys.exit(main())

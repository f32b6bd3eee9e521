"""Lets a program measure in turns with others: bench.gate runs one while the others wait."""

from __future__ import annotations

import os

VARIABLE = "BENCH_TURNS"
"""Names the two pipe ends of a program that is run in turns."""


def pass_turn() -> None:
    """Waits, before a round is timed, until all other programs have passed their turns; returns at
    once where there are none."""
    if ends := os.environ.get(VARIABLE):
        passing, going = map(int, ends.split(","))
        os.write(passing, b".")
        os.read(going, 1)

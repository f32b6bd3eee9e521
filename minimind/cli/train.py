"""Trains a model: `minimind train`. Stands in for the verb until its code is in minimind/run."""

from __future__ import annotations

import os
import runpy
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    script = Path(__file__).parents[2] / "launch" / "train.py"
    names = runpy.run_path(str(script))
    status = names["main"](argv)
    names["stop_ranks"]()
    if not names["read_ranks"]().is_main:
        os._exit(status)
    return status

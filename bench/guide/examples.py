"""Runs the examples of the guide, and compares what they print with what the pages say."""

from __future__ import annotations

import contextlib
import io
import math
import re
import runpy
from pathlib import Path
from typing import Any

import torch

from bench.harness import ROOT

EXAMPLES = ROOT / "docs" / "guide" / "examples"
_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
_RELATIVE, _ABSOLUTE = 0.05, 0.02
"""How far a printed number may be from the same number on another processor, which adds in another
order."""


def example_code(name: str) -> str:
    return (EXAMPLES / f"{name}.py").read_text(encoding="utf-8").rstrip()


def run_example(name: str) -> tuple[str, dict[str, Any]]:
    """Runs docs/guide/examples/NAME.py in this process, and gives what it prints and its variables.
    It runs on one thread: several threads add in another order, and training amplifies the
    difference. An error in the example is raised."""
    printed, threads = io.StringIO(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with contextlib.redirect_stdout(printed):
            variables = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    return printed.getvalue().rstrip(), variables


def prints_the_same(one: str, other: str) -> bool:
    """Tells whether two outputs have the same text and, up to rounding, the same numbers."""
    texts = [re.sub(r"[ -]+", " ", _NUMBER.sub("#", text)) for text in (one, other)]
    if texts[0] != texts[1]:
        return False
    pairs = zip(_NUMBER.findall(one), _NUMBER.findall(other), strict=True)
    return all(
        math.isclose(_value(a), _value(b), rel_tol=_RELATIVE, abs_tol=_ABSOLUTE) for a, b in pairs
    )


def _value(number: str) -> float:
    return float(number.replace(",", ""))


def all_examples() -> list[str]:
    """Gives the names of all examples."""
    return sorted(Path(file).stem for file in EXAMPLES.glob("*.py"))

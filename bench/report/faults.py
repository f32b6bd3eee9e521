"""Lists the faults that tests carry in the mark `faults`, for docs/faults.md."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.harness import ROOT, plain_table


@dataclass(frozen=True, slots=True)
class Fault:
    """Describes a fault, what happens, and the test that shows it."""

    area: str
    fault: str
    outcome: str
    test: str


def faults_section() -> str:
    """Gives the table of all faults, by area."""
    found = sorted(find_faults(ROOT / "tests"), key=lambda one: (one.area, one.test))
    rows = [(one.area, one.fault, one.outcome, f"`{one.test}`") for one in found]
    table = plain_table(("area", "fault", "what happens", "test"), rows)
    return f"{len(found)} faults.\n\n{table}"


def find_faults(folder: Path) -> Iterator[Fault]:
    """Yields the marks `pytest.mark.faults(fault, what happens)` of the tests in `folder` and of
    their parameters. Raises ValueError for a mark without two texts."""
    for path in sorted(folder.rglob("test_*.py")):
        area = path.parent.name
        for test in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(test, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            calls = (node for one in test.decorator_list for node in ast.walk(one))
            for call in calls:
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.faults":
                    texts = [ast.literal_eval(argument) for argument in call.args]
                    if len(texts) != 2:
                        raise ValueError(f"{path}:{call.lineno}: a fault and what happens")
                    place = f"{path.relative_to(folder.parent)}::{test.name}"
                    yield Fault(area, texts[0], texts[1], place)

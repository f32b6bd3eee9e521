"""What a step asks of a GPU that is not there, at every stage, JSON, model and number of ranks."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from rehearsed_points import EVERY, Chosen, as_rows, choose, read_table, rehearse_points

from minimind.rehearsal.report import Rehearsal

pytestmark = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler"
)

READS_OF_ROLLOUTS = ("read_tokens", "add_up", "_lay_out", "stops_before")
"""Where a stage reads what it generated, what it is worth and whether to go on."""


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> dict[Chosen, Rehearsal]:
    points = choose()
    found = rehearse_points(points, tmp_path_factory.mktemp("models"))
    return dict(zip(points, found, strict=True))


def test_any_two_choices_meet_in_a_point() -> None:
    points = choose()
    for first in range(4):
        for second in range(first + 1, 4):
            met = {(point[first], point[second]) for point in points}
            assert met == {(point[first], point[second]) for point in EVERY}


def test_nothing_waits_for_the_device(rehearsed: dict[Chosen, Rehearsal]) -> None:
    looked_at = 0
    for point, found in rehearsed.items():
        if point.json in ("zero1", "zero2"):
            assert not unexpected_waits(point, found), point
            looked_at += 1
    assert looked_at >= 16


def unexpected_waits(point: Chosen, found: Rehearsal) -> list[str]:
    allowed = READS_OF_ROLLOUTS if point.waits_for_tokens else ()
    waits = found.forbidden_waits
    return [
        f"{wait.kind}: {wait.place}"
        for wait in waits
        if not any(name in wait.place for name in allowed)
    ]


def test_a_step_asks_for_no_more_than_the_table_says(rehearsed: dict[Chosen, Rehearsal]) -> None:
    rows, table = as_rows(rehearsed, rehearsed.values()), read_table()
    assert rows.keys() == table.keys(), "python tests/rehearsal/rehearsed_points.py writes it anew"
    more = {
        name: (row, table[name])
        for name, row in rows.items()
        if any(row[what] > table[name][what] for what in row)
    }
    assert not more


def test_a_step_trains(rehearsed: dict[Chosen, Rehearsal]) -> None:
    """Each takes a forward and a backward through our kernels, and an update."""
    for point, found in rehearsed.items():
        assert {"rms_norm.forward", "rms_norm.backward"} <= found.launches.keys(), point
        assert found.collectives, point
        assert found.peak["weights"], point


@pytest.mark.slow
def test_nothing_waits_at_any_point(tmp_path: Path) -> None:
    found = rehearse_points(EVERY, tmp_path)
    bad = {
        point.name: unexpected_waits(point, one)
        for point, one in zip(EVERY, found, strict=True)
        if point.json in ("zero1", "zero2")
    }
    assert not {name: waits for name, waits in bad.items() if waits}

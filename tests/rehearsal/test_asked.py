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

READS_OF_ROLLOUTS = ("pending_tokens.py", "add_up", "_lay_out", "stops_before")
"""Where a stage reads what it generated, what it is worth and whether to go on."""


def test_any_two_choices_meet_in_a_point() -> None:
    points = choose()
    for first in range(4):
        for second in range(first + 1, 4):
            met = {(point[first], point[second]) for point in points}
            assert met == {(point[first], point[second]) for point in EVERY}


def test_what_a_step_asks_for(tmp_path: Path) -> None:
    """One test, so that the points are rehearsed once."""
    points = choose()
    rehearsed = dict(zip(points, rehearse_points(points, tmp_path), strict=True))
    for point, found in rehearsed.items():
        assert {"rms_norm.forward", "rms_norm.backward"} <= found.launches.keys(), point
        assert found.collectives, point
        assert found.peak["weights"], point
        if point.stage == "distill":
            assert found.peak["helpers"], point
    watched = [point for point in points if point.json in ("zero1", "zero2")]
    assert len(watched) >= 16
    assert not {p.name: bad for p in watched if (bad := unexpected_waits(p, rehearsed[p]))}
    rows, table = as_rows(rehearsed, rehearsed.values()), read_table()
    known = {value for name in table for value in name.split()}
    unknown = {name for name in rows if set(name.split()) - known}
    assert rows.keys() - unknown == table.keys(), "python tests/rehearsed_points.py writes it anew"
    more = {
        name: (rows[name], row)
        for name, row in table.items()
        if any(rows[name][what] > row[what] for what in row)
    }
    assert not more


def unexpected_waits(point: Chosen, found: Rehearsal) -> list[str]:
    """Lists the waits but for the numbers of the step before and, where answers are generated,
    what is read of them."""
    allowed = READS_OF_ROLLOUTS if point.waits_for_tokens else ()
    return [
        f"{wait.kind}: {wait.place}"
        for wait in found.forbidden_waits
        if not any(name in wait.place for name in allowed)
    ]


@pytest.mark.slow
def test_nothing_waits_at_any_point(tmp_path: Path) -> None:
    found = rehearse_points(EVERY, tmp_path)
    bad = {
        point.name: unexpected_waits(point, one)
        for point, one in zip(EVERY, found, strict=True)
        if point.json in ("zero1", "zero2")
    }
    assert not {name: waits for name, waits in bad.items() if waits}

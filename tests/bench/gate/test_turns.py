"""Programs that take turns: who works when, and what becomes of those that end early."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from bench.gate.turns import Ended, Program, run_in_turns
from bench.turns import pass_turn

ROOT = Path(__file__).resolve().parents[3]
WORK = """
import sys
from bench.turns import pass_turn
def say(word):
    with open("log", "a") as log:
        log.write(f"{name}{word} ")
name, rounds = sys.argv[1], int(sys.argv[2])
say("start")
for index in range(rounds):
    pass_turn()
    say(index)
"""


def program(folder: Path, name: str, rounds: int, code: str = WORK) -> Program:
    arguments = [sys.executable, "-c", code, name, str(rounds)]
    return Program(arguments, folder, os.environ | {"PYTHONPATH": str(ROOT)})


def read_log(folder: Path) -> list[str]:
    return (folder / "log").read_text().split()


def test_each_waits_for_the_other(tmp_path: Path) -> None:
    turns: list[str] = []
    ended = run_in_turns(
        {"a": program(tmp_path, "a", 3), "b": program(tmp_path, "b", 2)}, turns.append
    )
    assert ended == {"a": Ended(0, ""), "b": Ended(0, "")}
    assert read_log(tmp_path) == ["astart", "bstart", "a0", "b0", "a1", "b1", "a2"]
    assert turns == ["a", "b", "a", "b", "a", "b", "a"]


def test_one_that_knows_no_turns_runs_through(tmp_path: Path) -> None:
    old = program(tmp_path, "a", 2, WORK.replace("    pass_turn()\n", ""))
    run_in_turns({"b": program(tmp_path, "b", 1), "a": old}, lambda name: None)
    assert read_log(tmp_path) == ["bstart", "astart", "a0", "a1", "b0"]


def test_one_that_breaks_leaves_the_other(tmp_path: Path) -> None:
    broken = program(tmp_path, "a", 1, WORK + "raise SystemExit('no more')\n")
    ended = run_in_turns({"a": broken, "b": program(tmp_path, "b", 2)}, lambda name: None)
    assert ended["a"] == Ended(1, "no more\n")
    assert ended["b"].status == 0
    assert read_log(tmp_path) == ["astart", "bstart", "a0", "b0", "b1"]


def test_an_interruption_ends_them(tmp_path: Path) -> None:
    def interrupt(name: str) -> None:
        if name == "b":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_in_turns({"a": program(tmp_path, "a", 1), "b": program(tmp_path, "b", 1)}, interrupt)
    assert read_log(tmp_path) == ["astart"]


def test_alone_nobody_is_waited_for() -> None:
    pass_turn()

"""Runs measuring programs in turns, so that changes of the machine affect all alike.

One program works while the others wait. It passes its turn (bench/turns.py) before every round that
it times. A program that never passes, such as that of an older commit, runs to its end in its first
turn.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from bench.processes import kill_with_children
from bench.turns import VARIABLE


@dataclass(frozen=True, slots=True)
class Program:
    """Describes a program to run."""

    arguments: Sequence[str]
    folder: Path
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Ended:
    """Holds the exit status and the errors of a program that ended."""

    status: int
    errors: str
    """The text that the program wrote to stderr."""


def run_in_turns(
    programs: Mapping[str, Program], before_turn: Callable[[str], None]
) -> dict[str, Ended]:
    """Runs all programs to their ends; the first turns come in the order given. Calls
    `before_turn(name)` before each turn, while all programs wait; whatever it raises ends them."""
    ended: dict[str, Ended] = {}
    with contextlib.ExitStack() as stack:
        players: dict[str, _Player] = {}
        waiting = deque(programs)
        while waiting:
            name = waiting.popleft()
            before_turn(name)
            if name in players:
                players[name].go()
            else:
                players[name] = stack.enter_context(_started(programs[name]))
            if players[name].has_passed():
                waiting.append(name)
            else:
                ended[name] = players[name].end()
    return ended


@dataclass(frozen=True, slots=True)
class _Player:
    process: subprocess.Popen[Any]
    errors: IO[str]
    passed: int
    """The end of the pipe from which a passed turn is read."""
    going: int

    def go(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(self.going, b".")

    def has_passed(self) -> bool:
        """Waits until the program passes its turn (True) or ends (False)."""
        return bool(os.read(self.passed, 1))

    def end(self) -> Ended:
        status = self.process.wait()
        self.errors.seek(0)
        return Ended(status, self.errors.read())


@contextlib.contextmanager
def _started(program: Program) -> Iterator[_Player]:
    passed, passing = os.pipe()
    going, go = os.pipe()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(
            program.arguments,
            cwd=program.folder,
            env={**program.environment, VARIABLE: f"{passing},{going}"},
            pass_fds=(passing, going),
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        # Only the program holds these ends now, so the pipe ends when the program does.
        os.close(passing)
        os.close(going)
        try:
            yield _Player(process, errors, passed, go)
        finally:
            # Killed before its pipes are closed: the program would take a closed pipe for its turn.
            kill_with_children(process)
            os.close(go)
            os.close(passed)
            process.wait()

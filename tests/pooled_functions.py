"""Writes functions for worker processes to call, including ones that fail in each possible way."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minimind.runtime.function_pool import Call, FunctionPool, Outcome

Build = Callable[..., FunctionPool]
"""Builds a pool of functions of own.py: build("add(more=2)", …)."""

SHIPPED = {"root": "math:sqrt"}
_FUNCTIONS = """
    import os
    import subprocess
    import sys
    import time
    import beside

    class Own:
        pass

    def misbehave(argument):
        if argument == "raise":
            raise ValueError("no such thing")
        if argument == "hang":
            time.sleep(600)
        if argument == "die":
            os._exit(3)
        if argument == "crash":
            os.kill(os.getpid(), 11)
        if argument == "leave":
            sys.exit("enough")
        if argument == "lambda":
            return lambda: 0
        if argument == "own":
            return Own()
        if argument == "print":
            print("a word to stdout")
        return argument

    def add(number, more=1, *, most=100):
        return min(number + more + beside.NOTHING, most)

    def weather(city, unit="C"):
        return f"{city}: 20 {unit}"

    def where(_):
        return os.getcwd(), os.getpid()

    def double_large(text):
        return text + text

    def start_program(_):
        program = subprocess.Popen(["sleep", "600"])
        if os.fork() == 0:
            return "this is the other process"
        return program.pid

    def slow_start(number, seen=[]):
        if not seen:
            time.sleep(1.5)
        seen.append(number)
        return number

    NO_FUNCTION = 3
"""


def write_functions(folder: Path) -> None:
    """Writes own.py, beside.py, which it imports, and broken.py, which cannot be imported."""
    (folder / "own.py").write_text(textwrap.dedent(_FUNCTIONS))
    (folder / "beside.py").write_text("NOTHING = 0\n")
    (folder / "broken.py").write_text("import no_such_package_anywhere\n")


def outcomes(pool: FunctionPool, arguments: list[Any]) -> list[Outcome]:
    (function,) = pool._functions
    return pool.call([Call(function, argument) for argument in arguments])


def wait_for_the_end_of(pid: int) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except OSError:
            return
        time.sleep(0.05)
    pytest.fail(f"process {pid} is still there")

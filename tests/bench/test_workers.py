"""bench.workers: a row's process answers, and says how it broke."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from bench.workers import Worker, WorkerError, ask_all, started, take_turns
from minimind.errors import ConfigError


class TwoFieldError(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


class Served:
    def __init__(self, spec: Any) -> None:
        self._name = spec.name

    def add(self, number: int) -> str:
        return f"{self._name}{number}"

    def refuse(self) -> None:
        raise ConfigError("--rows x: no such row")

    def fail(self) -> None:
        raise TwoFieldError("out of", "tiles")

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def workers() -> Iterator[list[Worker]]:
    with started(Served, [SimpleNamespace(name="a"), SimpleNamespace(name="b")]) as found:
        yield found


def test_all_rows_take_each_round(workers: list[Worker]) -> None:
    assert ask_all(workers, "add", 7) == ["a7", "b7"]
    assert take_turns(workers, "add", range(3), 0, "") == [["a0", "a1", "a2"], ["b0", "b1", "b2"]]


def test_errors_name_the_row_and_the_place(workers: list[Worker]) -> None:
    with pytest.raises(ConfigError, match=r"^--rows x: no such row$"):
        workers[0].call("refuse")
    with pytest.raises(WorkerError, match=r"(?s)^a: Traceback.*in fail.*out of tiles"):
        workers[0].call("fail")
    assert workers[0].call("add", 1) == "a1", "it goes on"


def test_a_process_that_dies_is_named(workers: list[Worker]) -> None:
    for method in ("die", "add"):
        with pytest.raises(WorkerError, match=r"^b: a process died"):
            workers[1].call(method, *[1] * (method == "add"))
    assert workers[0].call("add", 1) == "a1"

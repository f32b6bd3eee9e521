"""The garbage collector: away during steps, back after them, and not away for ever."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from minimind.runtime import garbage
from minimind.runtime.garbage import Collections, without_collector


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    was_enabled = gc.isenabled()
    yield
    (gc.enable if was_enabled else gc.disable)()


class Node:
    def __init__(self) -> None:
        self.itself = self


@pytest.mark.parametrize("enabled", [True, False])
def test_it_is_as_before_however_it_ends(enabled: bool) -> None:
    (gc.enable if enabled else gc.disable)()
    with without_collector():
        assert not gc.isenabled()
        with without_collector():
            pass
        assert not gc.isenabled()
    assert gc.isenabled() == enabled
    with pytest.raises(ValueError, match="broken"), without_collector():
        raise ValueError("broken")
    assert gc.isenabled() == enabled


def test_what_steps_leave_in_cycles_is_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "_SECONDS", 1e9)
    alive: list[weakref.ref[Node]] = []
    most, collections = 0, Collections()
    with without_collector():
        for step in range(1, 4 * garbage._STEPS + 1):
            alive.append(weakref.ref(Node()))
            collections.after(step)
            most = max(most, sum(one() is not None for one in alive))
    assert most == garbage._STEPS - 1
    assert not any(one() is not None for one in alive)


def test_slow_steps_do_not_wait_for_many(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    collections = Collections()
    with without_collector():
        node = weakref.ref(Node())
        now = garbage._SECONDS - 1.0
        collections.after(1)
        assert node() is not None
        now += 2.0
        collections.after(2)
        assert node() is None

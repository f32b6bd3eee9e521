"""bench.kernels.timing where there is no GPU: which rows come of a case, and of a contender that
breaks. Recording and events are a GPU's own, and replaced here."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from minimind_kernels.op import PRESETS, Case, build_cases
from torch._functorch import config as functorch_config

from bench.kernels import timing

CEILINGS = {"copy_bytes_per_s": 1e12, "product_flops_per_s": 1e12}


def build() -> Case:
    return next(build_cases(PRESETS[0], 16, torch.float32, "cpu"))


@pytest.fixture
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def time_calls(calls: list[Callable[[], Any]], **_: Any) -> dict[str, Any]:
        for call in calls:
            call()
        return {"median_us": 2.0}

    monkeypatch.setattr(timing, "own_stream", contextlib.nullcontext)
    monkeypatch.setattr(timing, "build_sets", lambda build: [build(), build()])
    monkeypatch.setattr(timing, "time_calls", time_calls)
    monkeypatch.setattr(timing, "_host_us", lambda call: 1.0)
    monkeypatch.setattr(timing, "load_liger", lambda case: None)


@pytest.mark.usefixtures("_no_gpu")
def test_each_contender_has_a_row_a_direction():
    rows = list(timing.measure_case(build, CEILINGS, compiled=False))
    assert [(row["contender"], row["direction"]) for row in rows] == [
        (contender, direction)
        for contender in ("minimind", "eager")
        for direction in ("forward", "backward")
    ]
    case = build()
    assert rows[0]["floor_us"] == pytest.approx(case.forward_bytes / 1e6)
    assert rows[0]["share_of_ceiling"] == pytest.approx(rows[0]["floor_us"] / 2)


@pytest.mark.usefixtures("_no_gpu")
def test_what_breaks_is_one_row(monkeypatch: pytest.MonkeyPatch):
    whole = timing.contenders

    def with_a_broken_one(case: Case, *, compiled: bool):
        def break_down(*_: Any) -> Any:
            raise RuntimeError("out of resources")

        first, *others = whole(case, compiled=compiled)
        return [first, ("liger", lambda c: (break_down, c.inputs)), *others]

    monkeypatch.setattr(timing, "contenders", with_a_broken_one)
    rows = list(timing.measure_case(build, CEILINGS, compiled=False))
    assert [row["contender"] for row in rows] == ["minimind"] * 2 + ["liger"] + ["eager"] * 2
    assert rows[2]["median_us"] is None
    assert rows[2]["error"] == "RuntimeError: out of resources"


@pytest.mark.slow
def test_a_compiled_backward_can_be_called_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(functorch_config, "donated_buffer", functorch_config.donated_buffer)
    case = next(c for c in build_cases(PRESETS[0], 16, torch.float32, "cpu") if c.name == "swiglu")
    ((name, choose),) = timing.contenders(case, compiled=True)
    assert name == "torch.compile"
    calls = dict(timing.directions(case, [choose(case)]))
    first, again = (calls["backward"][0]() for _ in range(2))
    assert all(a.equal(b) for a, b in zip(first, again, strict=True))


def test_ligers_counterparts_can_be_called(monkeypatch: pytest.MonkeyPatch):
    """With functions of the same names that say what they were given."""
    given: list[tuple[Any, ...]] = []

    class Counterpart:
        @staticmethod
        def apply(*inputs: Any) -> tuple[Any, ...]:
            given.append(inputs)
            return inputs

    monkeypatch.setattr(timing.importlib, "import_module", lambda _: _AnyName(Counterpart))
    names = set()
    for sizes in PRESETS[2:4]:
        for case in build_cases(sizes, 16, torch.float32, "cpu"):
            apply = timing.load_liger(case)
            assert (apply is None) == (case.liger is None)
            if apply is not None:
                names.add(case.name)
                function, inputs = timing._liger_call(apply, case)
                function(*inputs)
                assert len(given[-1]) >= len(inputs)
    assert names


class _AnyName:
    def __init__(self, value: Any) -> None:
        self._value = value

    def __getattr__(self, _: str) -> Any:
        return self._value

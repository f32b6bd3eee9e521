"""bench.kernels.timing where there is no GPU: which rows come of a case, and of a contender that
breaks. Recording and events are a GPU's own, and replaced here."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import rival_libraries
import torch
from minimind_kernels.op import PRESETS, Case, build_cases
from torch._functorch import config as functorch_config

from bench.kernels import rivals, timing

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
    monkeypatch.setattr(timing, "load_rival", lambda rival: None)


@pytest.mark.usefixtures("_no_gpu")
def test_each_contender_has_a_row_a_direction():
    rows = list(timing.measure_case(build, CEILINGS, compiled=False))
    assert [(row["contender"], row["direction"]) for row in rows] == [
        (contender, direction)
        for contender in ("minimind", "eager")
        for direction in ("forward", "backward")
    ]
    assert all(row["relative_error"] < 1e-6 and not row["differs"] for row in rows)
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
        broken = timing.Contender("liger", lambda c: (break_down, c.inputs))
        return [first, broken, *others]

    monkeypatch.setattr(timing, "contenders", with_a_broken_one)
    rows = list(timing.measure_case(build, CEILINGS, compiled=False))
    assert [row["contender"] for row in rows] == ["minimind"] * 2 + ["liger"] + ["eager"] * 2
    assert rows[2]["median_us"] is None
    assert rows[2]["error"] == "RuntimeError: out of resources"


@pytest.mark.usefixtures("_no_gpu")
def test_gradients_of_the_forward_pass_are_timed_with_it_too(monkeypatch: pytest.MonkeyPatch):
    """A rival whose backward pass cannot be called twice has no row of its own for it."""
    monkeypatch.setattr(rivals, "import_module", rival_libraries.import_module)
    monkeypatch.setattr(timing, "load_rival", rivals.load_rival)
    rivals._load.cache_clear()

    def build_loss() -> Case:
        cases = build_cases(PRESETS[0], 16, torch.float32, "cpu")
        return next(case for case in cases if case.name == "linear_cross_entropy")

    monkeypatch.setattr(timing, "build_sets", lambda build: [build(), build()])
    rows = list(timing.measure_case(build_loss, CEILINGS, compiled=False))
    rivals._load.cache_clear()
    ways: dict[str, list[str]] = {}
    for row in rows:
        ways.setdefault(row["contender"], []).append(row["direction"])
    every = ["forward", "backward", "both"]
    assert ways.pop("quack") == ["forward", "both"]
    assert ways == dict.fromkeys(
        ("minimind", "eager", "liger", "liger-cute", "cut-cross-entropy"), every
    )
    both = [row["floor_us"] for row in rows if row["direction"] == "both"]
    assert both == pytest.approx([build_loss().forward_flops / 1e6] * len(both))


@pytest.mark.slow
def test_a_compiled_backward_can_be_called_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(functorch_config, "donated_buffer", functorch_config.donated_buffer)
    case = next(c for c in build_cases(PRESETS[0], 16, torch.float32, "cpu") if c.name == "swiglu")
    (contender,) = timing.contenders(case, compiled=True)
    assert contender.name == "torch.compile"
    calls = dict(timing.directions(case, [contender.choose(case)]))
    first, again = (calls["backward"][0]() for _ in range(2))
    assert all(a.equal(b) for a, b in zip(first, again, strict=True))

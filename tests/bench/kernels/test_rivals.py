"""The functions of other libraries: called as they want to be, and what they give is compared.
Stand-ins of the same parameters take their places; where a package is installed, its parameters are
compared with the stand-in's, read from its source, because most need a GPU to be imported."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import rival_libraries
import torch
from minimind_kernels.op import PRESETS, Case, build_cases
from torch import Tensor

from bench.kernels import rivals, timing
from bench.kernels.__main__ import format_rows
from bench.kernels.rivals import PACKAGES, Errors, Exact, load_rival, skipped_rivals

SMALL = [
    replace(sizes, hidden=48, heads=3, kv_heads=1, head_size=8, ffn=40, vocab=64)
    for sizes in (PRESETS[2], PRESETS[3])
]
"""Experts, and both orders of a norm's cast."""


def cases(dtype: torch.dtype) -> Iterator[Case]:
    for sizes in SMALL:
        yield from build_cases(sizes, 24, dtype, "cpu")


@pytest.fixture(autouse=True)
def _nothing_is_remembered() -> Iterator[None]:
    rivals._load.cache_clear()
    yield
    rivals._load.cache_clear()


@pytest.fixture
def _stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals, "import_module", rival_libraries.import_module)


@pytest.mark.usefixtures("_stand_ins")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rivals_do_the_same_work(dtype: torch.dtype):
    torch.manual_seed(3)
    met = set()
    for case in cases(dtype):
        for index, rival in enumerate(case.rivals):
            exact, function = Exact(case), load_rival(rival)
            assert function is not None
            errors = exact.errors(rival.call(function), rival)
            assert not exact.differs(errors), (case.name, rival.library, errors, exact.plain)
            call = timing._choose_rival(index, function, case)
            ways = ("forward", timing.TOGETHER if rival.backward_once else "backward")
            for _, calls in timing.directions(case, [call], ways):
                for _ in range(2):
                    calls[0]()
            met.add(rival.function)
    assert met == set(rival_libraries.FUNCTIONS)


def test_our_own_results_do_not_differ():
    torch.manual_seed(3)
    for case in cases(torch.bfloat16):
        exact = Exact(case)
        errors = exact.errors(case.ours)
        assert not exact.differs(errors), (case.name, errors, exact.plain)


@pytest.mark.usefixtures("_stand_ins")
def test_a_backward_that_overwrites_is_not_called_twice():
    """The reason for `backward_once`, and that no other rival needs it."""
    for case in cases(torch.float32):
        for index, rival in enumerate(case.rivals):
            function = load_rival(rival)
            assert function is not None
            ((_, (call,)),) = timing.directions(
                case, [timing._choose_rival(index, function, case)], ["backward"]
            )
            call()
            if rival.backward_once:
                with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                    call()
            else:
                call()


def small_case(name: str) -> Case:
    torch.manual_seed(3)
    return next(case for case in cases(torch.float32) if case.name == name)


@pytest.mark.parametrize("part", ["output", "gradient"])
def test_a_wrong_result_differs(part: str):
    case = small_case("rms_norm")
    exact = Exact(case)

    def slightly_wrong(x: Tensor, weight: Tensor) -> Tensor:
        y = case.plain(x, weight)
        return y * 1.001 if part == "output" else y + 0.001 * (weight - weight.detach())

    found = exact.errors(slightly_wrong)
    assert exact.differs(found)
    assert exact.differs(found, "backward")
    assert exact.differs(found, "forward") == (part == "output")
    assert not exact.differs(exact.errors(case.ours))
    assert not exact.differs(exact.plain)


def test_one_wrong_gradient_does_not_hide_behind_a_larger_error():
    case = small_case("add_rms_norm")
    exact = Exact(case)
    found = exact.errors(case.ours)
    hidden = Errors(found.forward, (*found.backward[:-1], 2 * max(found.backward) + 1e-6))
    assert exact.differs(hidden, "backward")
    assert not exact.differs(hidden, "forward")


def test_what_is_not_finite_differs():
    exact = Exact(small_case("rms_norm"))
    assert exact.differs(exact.errors(lambda x, w: x * w * float("nan")))


def test_a_result_of_another_form_is_named():
    exact = Exact(small_case("rms_norm"))
    with pytest.raises(ValueError, match=r"a result of \(48, 24\), where the plain form's is \(24"):
        exact.errors(lambda x, w: (x * w).t())
    with pytest.raises(ValueError, match="2 results, where the plain form has 1"):
        exact.errors(lambda x, w: (x * w, x * w))


def test_the_table_shows_what_differs_and_what_broke():
    row = {"name": "rms_norm.forward", "preset": "minimind3", "dtype": "bfloat16", "bytes": 5e6,
           "floor_us": 1.2, "contender": "quack", "median_us": 2.5, "differs": True,
           "relative_error": 3e-3, "eager_relative_error": 1e-3}  # fmt: skip
    broken = {**row, "median_us": None, "error": "RuntimeError: needs a Hopper GPU\nand more"}
    del broken["relative_error"], broken["eager_relative_error"]
    _, _, first, second = format_rows([row, broken]).splitlines()
    assert "3.0e-03 DIFFERS" in first
    assert "3.00" in first
    assert "broke: RuntimeError: needs a Hopper GPU |" in second


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch):
    def fail(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name.partition('.')[0]!r}")

    monkeypatch.setattr(rivals, "import_module", fail)
    reasons = skipped_rivals()
    assert reasons.keys() == PACKAGES.keys()
    assert reasons["quack"] == "No module named 'quack'; pip install 'quack-kernels'"
    assert all(load_rival(rival) is None for case in cases(torch.float32) for rival in case.rivals)


def test_a_library_that_breaks_while_imported_is_skipped(monkeypatch: pytest.MonkeyPatch):
    def fail(_: str) -> Any:
        raise OSError("libcuda.so.1: cannot open shared object file\nmore of it")

    monkeypatch.setattr(rivals, "import_module", fail)
    assert skipped_rivals()["liger-cute"].startswith("libcuda.so.1: cannot open shared object file")
    assert "more" not in skipped_rivals()["liger-cute"]


@pytest.mark.parametrize("library", PACKAGES)
def test_stand_ins_have_the_parameters_of_the_packages(library: str):
    package = PACKAGES[library].partition("[")[0]
    try:
        root = Path(str(importlib.metadata.distribution(package).locate_file("")))
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed")
    of_library = {
        rival.function
        for case in cases(torch.float32)
        for rival in case.rivals
        if rival.library == library
    }
    assert of_library
    for function in of_library:
        module, _, name = function.partition(":")
        stand_in = inspect.signature(rival_libraries.FUNCTIONS[function])
        assert parameters(root, module, name) == list(stand_in.parameters), function


def parameters(root: Path, module: str, name: str) -> list[str]:
    """Reads a function's parameters, or those of an autograd function's forward, from the source of
    the package; names that are imported or assigned are followed."""
    path = root.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        match node:
            case ast.FunctionDef(name=found) if found == name:
                return [one.arg for one in node.args.args]
            case ast.ClassDef(name=found, body=body) if found == name:
                forward = next(
                    n for n in body if isinstance(n, ast.FunctionDef) and n.name == "forward"
                )
                return [one.arg for one in forward.args.args][1:]
            case ast.ImportFrom(module=str(source), names=names):
                for alias in names:
                    if (alias.asname or alias.name) == name:
                        return parameters(root, source, alias.name)
            case ast.Assign(targets=[ast.Name(id=found)], value=ast.Name(id=other)):
                if found == name:
                    return parameters(root, module, other)
    raise AssertionError(f"{module} has no {name}")

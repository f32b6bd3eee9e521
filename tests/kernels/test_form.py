"""The generated CPU code: as right as the plain form, one piece of code whatever came before."""

import os

import minimind_kernels as K
import pytest
import torch
from kernel_rows import summed
from minimind_kernels import backend
from torch._dynamo.utils import counters

pytestmark = pytest.mark.skipif(
    not backend._has_compiler() or os.environ.get("TRITON_INTERPRET") == "1",
    reason="needs a C++ compiler",
)

ROWS = (1500, 1024)


@pytest.fixture(autouse=True)
def _compile_large_tensors(monkeypatch):
    monkeypatch.setattr(backend, "compile_setting", lambda: "1")
    monkeypatch.setattr(backend, "_MIN_COMPILED_ELEMENTS", 0)


def compilations():
    return counters["stats"]["unique_graphs"]


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str
)
@pytest.mark.parametrize("op", K.OPS.values(), ids=K.OPS)
def test_one_piece_of_code_for_any_number_of_rows(op, dtype, assert_as_accurate):
    before = compilations()
    for rows in ROWS:
        case = op.tested_case(dtype, "cpu", tokens=rows)
        ours, plain = summed(case.ours, case), summed(case.plain, case)
        assert_as_accurate(ours, plain, *case.inputs)
    assert compilations() - before <= 2, "compiled anew for another number of rows"


def test_history_leaves_no_trace():
    """Another width, another dtype and inference in between: the same bits after as before."""
    x, weight = torch.randn(1111, 48, requires_grad=True), torch.randn(48, requires_grad=True)

    def run():
        y = K.rms_norm(x, weight, 1e-5)
        return y, *torch.autograd.grad(y.square().sum(), (x, weight))

    first = run()
    before = compilations()
    K.rms_norm(torch.randn(1030, 24), torch.randn(24), 1e-5)
    with torch.inference_mode():
        K.rms_norm(torch.randn(1030, 48), weight, 1e-5)
    assert compilations() - before == 2
    for a, b in zip(first, run(), strict=True):
        assert torch.equal(a, b)
    assert compilations() - before == 2


def test_another_number_of_threads_keeps_the_rows_dynamic():
    weight = torch.randn(56)
    threads = torch.get_num_threads()
    before = compilations()
    try:
        for count in (threads, threads + 1):
            torch.set_num_threads(count)
            for rows in (1030, 1100):
                K.rms_norm(torch.randn(rows, 56), weight, 1e-5)
    finally:
        torch.set_num_threads(threads)
    assert compilations() - before == 2


def test_a_failed_compilation_falls_back(monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("no headers")

    monkeypatch.setattr(backend, "compile_setting", lambda: "auto")
    monkeypatch.setattr(torch, "compile", fail)
    assert K.swiglu(torch.ones(1024, 6)).shape == (1024, 3)
    assert "plain PyTorch from here on" in caplog.text
    monkeypatch.setattr(backend, "compile_setting", lambda: "1")
    with pytest.raises(RuntimeError, match="no headers"):
        K.swiglu(torch.ones(1024, 10))

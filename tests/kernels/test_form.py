"""The generated CPU code: as right as the plain form, one piece of code whatever came before."""

import os

import minimind_kernels as K
import pytest
import torch
from minimind_kernels import backend
from minimind_kernels.expert_gemm import expert_ffn_reference
from minimind_kernels.linear_distillation import linear_distillation_reference
from minimind_kernels.linear_loss import linear_cross_entropy_reference
from minimind_kernels.linear_token_loss import linear_token_loss_reference
from minimind_kernels.rms_norm import add_rms_norm_reference
from minimind_kernels.rope import qk_rope_reference
from minimind_kernels.swiglu import swiglu_reference
from torch._dynamo.utils import counters
from torch.nn import functional

pytestmark = pytest.mark.skipif(
    not backend._has_compiler() or os.environ.get("TRITON_INTERPRET") == "1",
    reason="needs a C++ compiler",
)

ROWS = (1500, 1024)


@pytest.fixture(autouse=True)
def _compile_large_tensors(monkeypatch):
    monkeypatch.setattr(backend, "compile_setting", lambda: "1")
    monkeypatch.setattr(backend, "_MIN_COMPILED_ELEMENTS", 0)


@pytest.fixture(params=["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def make(request):
    torch.manual_seed(3)

    def make(*shape):
        return torch.randn(shape).to(getattr(torch, request.param)).requires_grad_()

    return make


def compilations():
    return counters["stats"]["unique_graphs"]


def check(ours, reference, inputs_for, assert_as_accurate, expected):
    before = compilations()
    for rows in ROWS:
        assert_as_accurate(ours, reference, *inputs_for(rows))
    assert compilations() - before <= expected, "compiled anew for another number of rows"


def test_add_rms_norm(make, assert_as_accurate):
    check(
        lambda x, residual, weight: K.add_rms_norm(x, residual, weight, 1e-5, True),
        lambda x, residual, weight: add_rms_norm_reference(x, residual, weight, 1e-5, True),
        lambda rows: (make(rows, 40), make(rows, 40), make(40)),
        assert_as_accurate,
        expected=2,
    )


def test_swiglu(make, assert_as_accurate):
    check(
        K.swiglu, swiglu_reference, lambda rows: (make(rows, 80),), assert_as_accurate, expected=2
    )


def test_swiglu_linear(make, assert_as_accurate):
    check(
        K.swiglu_linear,
        lambda gate_up, weight: functional.linear(swiglu_reference(gate_up), weight),
        lambda rows: (make(rows, 80), make(24, 40)),
        assert_as_accurate,
        expected=2,
    )


def test_qk_rope(make, assert_as_accurate):
    angles = torch.arange(64)[:, None] / torch.arange(1, 9)

    def run(op):
        def call(qkv, *norms):
            wide = torch.promote_types(qkv.dtype, torch.float32)
            positions = torch.arange(len(qkv)) % 64
            return op(qkv, angles.cos().to(wide), angles.sin().to(wide), positions, 3, 1, *norms)

        return call

    check(
        run(K.qk_rope),
        run(qk_rope_reference),
        lambda rows: (make(rows, 80), make(16), make(16)),
        assert_as_accurate,
        expected=2,
    )


def test_cross_entropy(make, assert_as_accurate):
    def run(op):
        return lambda h, w: op(h, w, torch.arange(len(h)) * 7 % 90)

    check(
        run(K.linear_cross_entropy),
        run(linear_cross_entropy_reference),
        lambda rows: (make(rows, 16), make(90, 16)),
        assert_as_accurate,
        expected=2,
    )


def test_token_loss(make, assert_as_accurate):
    def run(op):
        def call(h, w):
            ids = torch.arange(len(h)) * 7 % 90
            return op(h, w, ids, lambda log_prob, rows: (log_prob * ids[rows] / 90).exp())[0].sum()

        return call

    check(
        run(K.linear_token_loss),
        run(linear_token_loss_reference),
        lambda rows: (make(rows, 16), make(90, 16)),
        assert_as_accurate,
        expected=2,
    )


def test_distillation(make, assert_as_accurate):
    def run(op):
        def call(h, w, teacher_h):
            labels = torch.arange(len(h)) * 7 % 90
            return op(h, w, teacher_h.detach(), w.detach().flip(0), labels, 0.4, 1.5)[0].sum()

        return call

    check(
        run(K.linear_distillation),
        run(linear_distillation_reference),
        lambda rows: (make(rows, 16), make(90, 16), make(rows, 16).detach()),
        assert_as_accurate,
        expected=2,
    )


def test_expert_ffn(make, assert_as_accurate):
    def run(op):
        def call(x, gate_up, down, router):
            return op(x, gate_up, down, K.moe_routing(x @ router, 2, norm_topk_prob=True))

        return call

    check(
        run(K.expert_ffn),
        run(expert_ffn_reference),
        lambda rows: (make(rows, 16), make(3, 48, 16), make(3, 16, 24), make(16, 3)),
        assert_as_accurate,
        expected=2,
    )


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

"""70,000 rows, where offsets pass 2**31 bytes and grids grow long: on a GPU."""

import minimind_kernels as K
import pytest
import torch
from minimind_kernels.expert_gemm import expert_ffn_reference
from minimind_kernels.linear_loss import linear_cross_entropy_reference
from minimind_kernels.rms_norm import add_rms_norm_reference
from minimind_kernels.rope import qk_rope_reference
from minimind_kernels.swiglu import swiglu_reference

ROWS = 70_000

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


@pytest.fixture
def randn():
    def make(*shape, scale=1.0):
        return (torch.randn(shape, device="cuda") * scale).bfloat16().requires_grad_()

    return make


def test_add_rms_norm(randn, assert_as_accurate):
    def run(op):
        return lambda x, residual, weight: op(x, residual, weight, 1e-5)

    inputs = (randn(ROWS, 768), randn(ROWS, 768), randn(768))
    assert_as_accurate(run(K.add_rms_norm), run(add_rms_norm_reference), *inputs)


def test_qk_rope(randn, assert_as_accurate):
    angles = torch.arange(1024, device="cuda")[:, None] / torch.arange(1, 49, device="cuda")
    positions = torch.arange(ROWS, device="cuda") % 1024

    def run(op):
        def call(qkv, *norms):
            wide = torch.promote_types(qkv.dtype, torch.float32)
            return op(qkv, angles.cos().to(wide), angles.sin().to(wide), positions, 8, 4, *norms)

        return call

    inputs = (randn(ROWS, 16 * 96), randn(96), randn(96))
    assert_as_accurate(run(K.qk_rope), run(qk_rope_reference), *inputs)


def test_swiglu(randn, assert_as_accurate):
    assert_as_accurate(K.swiglu, swiglu_reference, randn(ROWS, 2 * 2432))


def test_experts(randn, assert_as_accurate):
    def run(op):
        def call(x, gate_up, down):
            routing = K.moe_routing(x[:, :4].float(), 2, norm_topk_prob=True)
            return op(x, gate_up, down, routing)

        return call

    assert_as_accurate(
        run(K.expert_ffn),
        run(expert_ffn_reference),
        randn(ROWS, 128),
        randn(4, 2 * 256, 128, scale=0.1),
        randn(4, 128, 256, scale=0.1),
    )


def test_linear_cross_entropy(randn, assert_as_accurate):
    labels = torch.arange(ROWS, device="cuda") * 7 % 1600

    def run(op, **options):
        return lambda h, w: op(h, w, labels, **options).sum()

    assert_as_accurate(
        run(K.linear_cross_entropy, uniform_grad=True),
        run(linear_cross_entropy_reference),
        randn(ROWS, 128),
        randn(1600, 128, scale=0.05),
    )

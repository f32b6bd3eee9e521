import minimind_kernels as K
import pytest
import torch
from minimind_kernels.rms_norm import add_rms_norm_reference, rms_norm_reference

SHAPES = [(1, 8), (0, 24), (37, 130), (5, 512)]


@pytest.fixture(params=[False, True], ids=["product_in_fp32", "cast_before_weight"])
def cast_before_weight(request):
    return request.param


@pytest.mark.parametrize("shape", SHAPES)
def test_norm(shape, randn, cast_before_weight, assert_as_accurate):
    def run(op):
        return lambda x, weight: op(x, weight, 1e-5, cast_before_weight)

    assert_as_accurate(run(K.rms_norm), run(rms_norm_reference), randn(*shape), randn(shape[1]))


@pytest.mark.parametrize("shape", SHAPES)
def test_add_norm(shape, randn, cast_before_weight, assert_as_accurate):
    def run(op):
        return lambda x, residual, weight: op(x, residual, weight, 1e-5, cast_before_weight)

    inputs = (randn(*shape), randn(*shape), randn(shape[1]))
    assert_as_accurate(run(K.add_rms_norm), run(add_rms_norm_reference), *inputs)


@pytest.mark.parametrize("scale", [1e-4, 1e3])
def test_magnitudes(scale, randn, assert_as_accurate):
    def run(op):
        return lambda x, weight: op(x, weight, 1e-6)

    inputs = (randn(9, 96, scale=scale), randn(96))
    assert_as_accurate(run(K.rms_norm), run(rms_norm_reference), *inputs)


def test_views(randn, assert_as_accurate):
    def run(op):
        return lambda x, residual, weight: op(
            x[:, ::2, :24], residual.transpose(0, 1), weight, 1e-5
        )

    inputs = (randn(3, 8, 32), randn(4, 3, 24), randn(24))
    assert_as_accurate(run(K.add_rms_norm), run(add_rms_norm_reference), *inputs)


def test_frozen_weight(randn, assert_as_accurate):
    def run(op):
        return lambda x, weight: op(x, weight, 1e-5)

    inputs = (randn(5, 24), randn(24).detach())
    assert_as_accurate(run(K.rms_norm), run(rms_norm_reference), *inputs)


def test_weight_of_another_dtype(device):
    x, weight = torch.randn(5, 24, device=device).half(), torch.randn(24, device=device)
    expected = rms_norm_reference(x, weight, 1e-5)
    torch.testing.assert_close(K.rms_norm(x, weight, 1e-5), expected)


def test_no_gradient_wanted(randn):
    x, weight = randn(5, 24), randn(24)
    with torch.inference_mode():
        expected = rms_norm_reference(x, weight, 1e-5)
        torch.testing.assert_close(K.rms_norm(x, weight, 1e-5), expected, rtol=1e-2, atol=1e-2)


def test_both_orders_are_the_formulas():
    x, weight = torch.randn(7, 64).bfloat16(), torch.randn(64).bfloat16()
    rstd = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-5)
    assert torch.equal(
        rms_norm_reference(x, weight, 1e-5, False), (x.float() * rstd * weight.float()).bfloat16()
    )
    assert torch.equal(
        rms_norm_reference(x, weight, 1e-5, True), (x.float() * rstd).bfloat16() * weight
    )


def test_the_reference_has_right_gradients():
    x, residual = (torch.randn(3, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight = torch.randn(8, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda *t: add_rms_norm_reference(*t, 1e-5), (x, residual, weight))


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"\(8,\), not \(4,\)"):
        K.rms_norm(torch.ones(2, 8), torch.ones(4), 1e-5)
    with pytest.raises(ValueError, match="one shape and dtype"):
        K.add_rms_norm(torch.ones(2, 8), torch.ones(2, 8).half(), torch.ones(8), 1e-5)

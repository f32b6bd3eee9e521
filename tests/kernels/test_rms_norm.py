import minimind_kernels as K
import pytest
import torch
from kernel_rows import INTERPRETED
from minimind_kernels.rms_norm import add_rms_norm_reference, rms_norm_reference


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


@pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(), reason="needs Triton's interpreter or a GPU"
)
@pytest.mark.parametrize("num_rows", [1, 1024, 2500])
def test_partial_sums_of_many_programs(num_rows):
    from minimind_kernels.triton_impl.column_sum import column_sum

    partial = torch.randn(num_rows, 37, device="cuda" if torch.cuda.is_available() else "cpu")
    found = column_sum(partial, torch.float32)
    assert torch.equal(found, column_sum(partial, torch.float32))
    torch.testing.assert_close(found.double(), partial.double().sum(0), rtol=1e-5, atol=1e-4)


def test_both_orders_are_the_formulas():
    x, weight = torch.randn(7, 64).bfloat16(), torch.randn(64).bfloat16()
    rstd = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-5)
    assert torch.equal(
        rms_norm_reference(x, weight, 1e-5, False), (x.float() * rstd * weight.float()).bfloat16()
    )
    assert torch.equal(
        rms_norm_reference(x, weight, 1e-5, True), (x.float() * rstd).bfloat16() * weight
    )


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"\(8,\), not \(4,\)"):
        K.rms_norm(torch.ones(2, 8), torch.ones(4), 1e-5)
    with pytest.raises(ValueError, match="one shape and dtype"):
        K.add_rms_norm(torch.ones(2, 8), torch.ones(2, 8).half(), torch.ones(8), 1e-5)

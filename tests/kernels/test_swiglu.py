import minimind_kernels as K
import pytest
import torch
from minimind_kernels.swiglu import swiglu_reference


@pytest.mark.parametrize("shape", [(1, 2), (0, 24), (37, 130), (3, 5, 352)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_swiglu(shape, scale, randn, assert_as_accurate):
    assert_as_accurate(K.swiglu, swiglu_reference, randn(*shape, scale=scale))


def test_views(randn, assert_as_accurate):
    def run(op):
        return lambda gate_up: op(gate_up.transpose(0, 1)[1:])

    assert_as_accurate(run(K.swiglu), run(swiglu_reference), randn(5, 4, 26))


def test_the_reference_has_right_gradients():
    gate_up = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(swiglu_reference, (gate_up,))


def test_an_odd_width_is_refused():
    with pytest.raises(ValueError, match="even"):
        K.swiglu(torch.ones(2, 7))

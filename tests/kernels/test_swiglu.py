import minimind_kernels as K
import pytest
import torch
from minimind_kernels.swiglu import swiglu_reference
from torch.nn import functional


@pytest.mark.parametrize("shape", [(1, 2), (0, 24), (37, 130), (3, 5, 352)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_swiglu(shape, scale, randn, assert_as_accurate):
    assert_as_accurate(K.swiglu, swiglu_reference, randn(*shape, scale=scale))


def linear_reference(gate_up, weight):
    return functional.linear(swiglu_reference(gate_up), weight)


@pytest.mark.parametrize("shape", [(1, 2), (0, 24), (37, 130), (3, 5, 352)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_swiglu_linear(shape, scale, randn, assert_as_accurate):
    inputs = (randn(*shape, scale=scale), randn(7, shape[-1] // 2))
    assert_as_accurate(K.swiglu_linear, linear_reference, *inputs)


@pytest.mark.parametrize("trained", ["gate_up", "weight", "neither"])
def test_swiglu_linear_with_a_part_frozen(trained, randn, assert_as_accurate):
    inputs = {"gate_up": randn(9, 26), "weight": randn(7, 13)}
    inputs = [t if name == trained else t.detach() for name, t in inputs.items()]
    assert_as_accurate(K.swiglu_linear, linear_reference, *inputs)


def test_swiglu_linear_keeps_its_inputs_alone(randn):
    kept = []

    def keep(tensor):
        kept.append(tensor.data_ptr())
        return tensor

    gate_up, weight = randn(9, 26), randn(7, 13)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        K.swiglu_linear(gate_up, weight)
    assert sorted(kept) == sorted([gate_up.data_ptr(), weight.data_ptr()])


def test_views(randn, assert_as_accurate):
    def run(op):
        return lambda gate_up: op(gate_up.transpose(0, 1)[1:])

    assert_as_accurate(run(K.swiglu), run(swiglu_reference), randn(5, 4, 26))


def test_the_reference_has_right_gradients():
    gate_up = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(swiglu_reference, (gate_up,))


def test_wrong_widths_are_refused():
    with pytest.raises(ValueError, match="even"):
        K.swiglu(torch.ones(2, 7))
    with pytest.raises(ValueError, match=r"\(3, 5\).* 10 wide, not \(2, 8\)"):
        K.swiglu_linear(torch.ones(2, 8), torch.ones(3, 5))

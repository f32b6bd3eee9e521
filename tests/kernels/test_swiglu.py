import minimind_kernels as K
import pytest
import torch
from minimind_kernels.swiglu import swiglu_linear_reference, swiglu_reference


@pytest.mark.parametrize("trained", ["gate_up", "weight", "neither"])
def test_swiglu_linear_with_a_part_frozen(trained, randn, assert_as_accurate):
    inputs = {"gate_up": randn(9, 26), "weight": randn(7, 13)}
    inputs = [t if name == trained else t.detach() for name, t in inputs.items()]
    assert_as_accurate(K.swiglu_linear, swiglu_linear_reference, *inputs)


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


def test_wrong_widths_are_refused():
    with pytest.raises(ValueError, match="even"):
        K.swiglu(torch.ones(2, 7))
    with pytest.raises(ValueError, match=r"\(3, 5\).* 10 wide, not \(2, 8\)"):
        K.swiglu_linear(torch.ones(2, 8), torch.ones(3, 5))

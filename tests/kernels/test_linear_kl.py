import minimind_kernels as K
import pytest
import torch


def test_the_teacher_receives_no_gradient():
    inputs = [torch.randn(*s, requires_grad=True) for s in ((3, 4), (5, 4), (3, 6), (5, 6))]
    K.linear_kl(*inputs).sum().backward()
    assert [t.grad is None for t in inputs] == [False, False, True, True]


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"\(3, 4\), \(5, 4\), \(3, 6\) and \(6, 6\)"):
        K.linear_kl(torch.ones(3, 4), torch.ones(5, 4), torch.ones(3, 6), torch.ones(6, 6))
    with pytest.raises(ValueError, match="temperature above 0, not 0"):
        K.linear_kl(torch.ones(3, 4), torch.ones(5, 4), torch.ones(3, 6), torch.ones(5, 6), 0.0)

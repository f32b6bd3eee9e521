import minimind_kernels as K
import pytest
import torch
from minimind_kernels.linear_kl import linear_kl_reference


def counted_for(num_tokens, device, counted):
    if counted == "all":
        return None
    mask = torch.arange(num_tokens, device=device) % 3 != 1
    return mask if counted == "some" else torch.zeros_like(mask)


@pytest.mark.parametrize("num_tokens", [0, 1, 8])
@pytest.mark.parametrize("counted", ["all", "some", "none"])
@pytest.mark.parametrize("uniform_grad", [False, True])
def test_kl(num_tokens, counted, uniform_grad, device, randn, assert_as_accurate):
    mask = counted_for(num_tokens, device, counted)
    teacher_hidden, teacher_weight = randn(num_tokens, 40), randn(67, 40)

    def run(op, **options):
        def call(hidden, weight):
            wide = hidden.dtype
            loss = op(
                hidden, weight, teacher_hidden.to(wide), teacher_weight.to(wide), 1.5, mask,
                **options,
            )  # fmt: skip
            return loss.sum() if uniform_grad else loss

        return call

    ours = run(K.linear_kl, chunk_size=3, uniform_grad=uniform_grad)
    assert_as_accurate(ours, run(linear_kl_reference), randn(num_tokens, 24), randn(67, 24))
    assert teacher_hidden.grad is None


@pytest.mark.parametrize("counted", ["all", "some", "none"])
def test_a_frozen_student_head(counted, device, randn, assert_as_accurate):
    mask = counted_for(8, device, counted)
    teacher_hidden, teacher_weight = randn(8, 40), randn(67, 40)

    def run(op, **options):
        def call(hidden, weight):
            teacher = (teacher_hidden.to(hidden.dtype), teacher_weight.to(hidden.dtype))
            return op(hidden, weight, *teacher, 1.5, mask, **options)

        return call

    ours = run(K.linear_kl, chunk_size=3)
    assert_as_accurate(ours, run(linear_kl_reference), randn(8, 24), randn(67, 24).detach())


@pytest.mark.parametrize("scale", [1e-3, 10.0])
def test_magnitudes(scale, device, randn, assert_as_accurate):
    teacher_hidden, teacher_weight = randn(9, 24, scale=scale), randn(67, 24)

    def run(op):
        return lambda h, w: op(h, w, teacher_hidden.to(h.dtype), teacher_weight.to(h.dtype), 0.7)

    inputs = (randn(9, 24, scale=scale), randn(67, 24))
    assert_as_accurate(run(K.linear_kl), run(linear_kl_reference), *inputs)


def test_no_gradient_wanted(device):
    torch.manual_seed(0)
    inputs = [torch.randn(*s, device=device) for s in ((9, 8), (21, 8), (9, 12), (21, 12))]
    torch.testing.assert_close(K.linear_kl(*inputs, 2.0), linear_kl_reference(*inputs, 2.0))


def test_the_reference_has_right_gradients():
    inputs = [
        torch.randn(*s, dtype=torch.float64, requires_grad=i < 2)
        for i, s in enumerate(((3, 4), (5, 4), (3, 6), (5, 6)))
    ]
    torch.autograd.gradcheck(lambda *t: linear_kl_reference(*t, 1.5), inputs)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"\(3, 4\), \(5, 4\), \(3, 6\) and \(6, 6\)"):
        K.linear_kl(torch.ones(3, 4), torch.ones(5, 4), torch.ones(3, 6), torch.ones(6, 6))
    with pytest.raises(ValueError, match="temperature above 0, not 0"):
        K.linear_kl(torch.ones(3, 4), torch.ones(5, 4), torch.ones(3, 6), torch.ones(5, 6), 0.0)

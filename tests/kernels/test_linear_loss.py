import minimind_kernels as K
import pytest
import torch
from minimind_kernels.linear_loss import linear_cross_entropy_reference
from minimind_kernels.token_chunks import TokenChunks


def test_the_weights_gradient_is_summed_in_fp32(device, dtype, assert_as_accurate):
    """Over 64 chunks; rounded after each, it would err several times as much."""
    case = K.OPS["linear_log_prob"].tested_case(dtype, device, tokens=64, chunk_size=1)
    assert_as_accurate(case.ours, case.plain, *case.inputs, ratio=2.5)


def test_a_frozen_head_makes_its_logits_once(monkeypatch):
    """Two products instead of three: what a LoRA run's preferences cost."""
    made = []
    logits = TokenChunks.logits
    monkeypatch.setattr(TokenChunks, "logits", lambda *a: made.append(1) or logits(*a))
    ids, weights = torch.arange(6), torch.arange(6.0)
    for requires_grad, expected in ((False, 1), (True, 2)):
        hidden = torch.randn(6, 8, requires_grad=True)
        weight = torch.randn(11, 8, requires_grad=requires_grad)
        made.clear()
        (K.linear_log_prob(hidden, weight, ids) * weights).sum().backward()
        assert len(made) == expected


def test_a_gradient_that_is_not_uniform_is_refused():
    hidden, weight = torch.randn(5, 8, requires_grad=True), torch.randn(11, 8)
    loss = K.linear_cross_entropy(hidden, weight, torch.arange(5), uniform_grad=True)
    with pytest.raises(ValueError, match="leave uniform_grad out"):
        loss.backward(torch.arange(5.0))


def test_an_ignored_token_may_receive_any_gradient():
    hidden, weight = torch.randn(5, 8, requires_grad=True), torch.randn(11, 8)
    labels = torch.tensor([1, -100, 2, 3, 4])
    K.linear_cross_entropy(hidden, weight, labels, uniform_grad=True).backward(
        torch.tensor([2.0, 5.0, 2.0, 2.0, 2.0])
    )
    assert hidden.grad is not None
    assert not hidden.grad[1].any()


@pytest.mark.parametrize("uniform_grad", [False, True])
@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_one_side_frozen(uniform_grad, frozen, device, randn, assert_as_accurate):
    labels = torch.arange(17, device=device) * 5 % 67
    labels[1::3] = -100
    hidden, weight = randn(17, 24), randn(67, 24)
    inputs = (hidden.detach(), weight) if frozen == "hidden" else (hidden, weight.detach())

    def ours(hidden, weight):
        loss = K.linear_cross_entropy(hidden, weight, labels, uniform_grad=uniform_grad)
        return loss.sum()

    def reference(hidden, weight):
        return linear_cross_entropy_reference(hidden, weight, labels).sum()

    assert_as_accurate(ours, reference, *inputs)


def test_views_and_another_ignored_label(device, randn, assert_as_accurate):
    labels = torch.tensor([3, 9, 4, 9, 0], device=device)

    def ours(hidden, weight):
        return K.linear_cross_entropy(hidden[::2], weight.t(), labels, ignore_index=9)

    def reference(hidden, weight):
        return linear_cross_entropy_reference(hidden[::2], weight.t(), labels, ignore_index=9)

    assert_as_accurate(ours, reference, randn(10, 6), randn(6, 11))


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"\(3, 8\) torch.float32, \(5, 4\)"):
        K.linear_cross_entropy(torch.ones(3, 8), torch.ones(5, 4), torch.zeros(3))

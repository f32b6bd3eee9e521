import minimind_kernels as K
import pytest
import torch
from minimind_kernels.linear_loss import linear_cross_entropy_reference
from minimind_kernels.token_chunks import TokenChunks


def test_the_weights_gradient_is_summed_in_fp32(device, dtype, assert_as_accurate):
    """Over 64 chunks; rounded after each, it would err several times as much."""
    case = K.OPS["linear_log_prob"].tested_case(dtype, device, tokens=64, chunk_size=1)
    assert_as_accurate(case.ours, case.plain, *case.inputs, ratio=2.5)


@pytest.mark.parametrize(
    ("trained", "max_kept_bytes", "expected"),
    [(False, 0, 1), (True, 6 * 11 * 4 - 1, 2), (True, 6 * 11 * 4, 1)],
    ids=["frozen head", "too many bytes", "kept"],
)
def test_how_often_the_logits_are_made(trained, max_kept_bytes, expected, monkeypatch):
    """A frozen head is what a LoRA run's preferences have."""
    made = []
    logits = TokenChunks.logits
    monkeypatch.setattr(TokenChunks, "logits", lambda *a: made.append(1) or logits(*a))
    hidden = torch.randn(6, 8, requires_grad=True)
    weight = torch.randn(11, 8, requires_grad=trained)
    found = K.linear_log_prob(hidden, weight, torch.arange(6), max_kept_bytes=max_kept_bytes)
    (found * torch.arange(6.0)).sum().backward()
    assert len(made) == expected


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_kept_logits_change_no_bit(chunk_size, device, randn):
    ids, upstream = torch.arange(17, device=device) * 5 % 64, torch.randn(17, device=device)
    hidden, weight = randn(17, 24), randn(64, 24)

    def run(max_kept_bytes):
        found = K.linear_log_prob(
            hidden, weight, ids, chunk_size=chunk_size, max_kept_bytes=max_kept_bytes
        )
        return found, *torch.autograd.grad(found, (hidden, weight), upstream)

    for kept, made_anew in zip(run(1 << 20), run(0), strict=True):
        assert torch.equal(kept, made_anew)


def test_a_second_backward_makes_the_kept_logits_anew():
    """The first one has overwritten them."""
    hidden, weight = torch.randn(6, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True)
    found = K.linear_log_prob(hidden, weight, torch.arange(6))
    once, again = (
        torch.autograd.grad(found, (hidden, weight), torch.arange(6.0), retain_graph=True)
        for _ in range(2)
    )
    for first, second in zip(once, again, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("uniform_grad", [False, True])
@pytest.mark.parametrize("vocab", [51, 101])
@pytest.mark.parametrize("label", [-1, -101, 64, 101, 1 << 40])
def test_a_label_beyond_the_vocabulary_shows(label, vocab, uniform_grad, device):
    """And reads no memory of others: 64 lies within the row's block, or is a valid label."""
    labels = torch.tensor([3, label, -100, 50], device=device)
    hidden, weight = (torch.randn(n, 8, device=device, requires_grad=True) for n in (4, vocab))
    loss = K.linear_cross_entropy(hidden, weight, labels, uniform_grad=uniform_grad)
    loss.sum().backward()
    is_wrong = torch.tensor([False, not 0 <= label < vocab, False, False], device=device)
    assert hidden.grad is not None
    assert torch.equal(loss.isnan(), is_wrong)
    assert torch.equal(hidden.grad.isnan().all(dim=1), is_wrong)
    assert not hidden.grad[2].any()
    with torch.no_grad():
        assert torch.equal(K.linear_log_prob(hidden, weight, labels).isnan(), is_wrong)


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

import minimind_kernels as K
import pytest
import torch
from minimind_kernels.linear_distillation import linear_distillation_reference
from minimind_kernels.token_chunks import TokenChunks


def labels_for(num_tokens, device, counted="some"):
    labels = torch.arange(num_tokens, device=device) * 5 % 67
    if counted == "some":
        labels[1::3] = -100
    elif counted == "none":
        labels[:] = -100
    return labels


def run(op, teacher, labels, *options, **more):
    """The sum of the losses; the parts, of which no gradient is asked, beside it."""

    def call(hidden, weight):
        teacher_hidden, teacher_weight = (t.to(hidden.dtype) for t in teacher)
        inputs = (hidden, weight, teacher_hidden, teacher_weight, labels)
        loss, ce, kl = op(*inputs, *options, **more)
        assert not ce.requires_grad
        assert not kl.requires_grad
        return loss.sum(), (loss.sum() * 0 + ce.sum()), (loss.sum() * 0 + kl.sum())

    return call


@pytest.mark.parametrize("num_tokens", [0, 1, 8])
@pytest.mark.parametrize("counted", ["all", "some", "none"])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_distillation(num_tokens, counted, alpha, device, randn, assert_as_accurate):
    labels = labels_for(num_tokens, device, counted)
    teacher = randn(num_tokens, 40), randn(67, 40)
    ours = run(K.linear_distillation, teacher, labels, alpha, 1.5, chunk_size=3)
    reference = run(linear_distillation_reference, teacher, labels, alpha, 1.5)
    inputs = randn(num_tokens, 24), randn(67, 24)

    def first(call):
        return lambda *tensors: call(*tensors)[0]

    assert_as_accurate(first(ours), first(reference), *inputs)
    with torch.no_grad():
        for part, expected in zip(ours(*inputs), reference(*inputs), strict=True):
            torch.testing.assert_close(part, expected, rtol=2e-3, atol=2e-2)
    assert teacher[0].grad is None


@pytest.mark.parametrize("scale", [1e-3, 10.0])
def test_magnitudes(scale, device, randn, assert_as_accurate):
    labels, teacher = labels_for(9, device), (randn(9, 24, scale=scale), randn(67, 24))

    def loss(op):
        call = run(op, teacher, labels, 0.5, 0.7)
        return lambda *tensors: call(*tensors)[0]

    inputs = randn(9, 24, scale=scale), randn(67, 24)
    assert_as_accurate(loss(K.linear_distillation), loss(linear_distillation_reference), *inputs)


def test_the_students_logits_are_made_once(monkeypatch):
    made = []
    logits = TokenChunks.logits
    monkeypatch.setattr(TokenChunks, "logits", lambda *a: made.append(1) or logits(*a))
    hidden, weight = torch.randn(6, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True)
    teacher = torch.randn(6, 9), torch.randn(11, 9)
    K.linear_distillation(hidden, weight, *teacher, torch.arange(6))[0].sum().backward()
    assert len(made) == 2


def test_the_reference_has_right_gradients():
    inputs = [
        torch.randn(*s, dtype=torch.float64, requires_grad=i < 2)
        for i, s in enumerate(((3, 4), (5, 4), (3, 6), (5, 6)))
    ]
    labels = torch.tensor([4, -100, 0])
    torch.autograd.gradcheck(
        lambda *t: linear_distillation_reference(*t, labels, 0.3, 1.5)[0], inputs
    )


def test_wrong_arguments_are_named():
    student, teacher = (torch.ones(3, 4), torch.ones(5, 4)), (torch.ones(3, 6), torch.ones(5, 6))
    labels = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"\(3, 4\), \(5, 4\), \(3, 6\) and \(6, 6\)"):
        K.linear_distillation(*student, teacher[0], torch.ones(6, 6), labels)
    with pytest.raises(ValueError, match=r"labels \[M\] for hidden \[M, D\], not \(2,\)"):
        K.linear_distillation(*student, *teacher, labels[:2])
    with pytest.raises(ValueError, match="temperature above 0, not 0"):
        K.linear_distillation(*student, *teacher, labels, 0.5, 0.0)
    hidden = torch.ones(3, 4, requires_grad=True)
    loss, *_ = K.linear_distillation(hidden, student[1], *teacher, labels)
    with pytest.raises(ValueError, match="leave uniform_grad out"):
        loss.backward(torch.arange(3.0))

import minimind_kernels as K
import pytest
import torch
from minimind_kernels.linear_distillation import linear_distillation_reference
from minimind_kernels.token_chunks import TokenChunks


@pytest.mark.parametrize("counted", ["all", "some", "none"])
def test_its_parts(counted, device, randn):
    """Which have no gradient of their own."""
    labels = torch.arange(8, device=device) * 5 % 67
    labels[{"all": slice(0), "some": slice(1, None, 3), "none": slice(None)}[counted]] = -100
    inputs = (randn(8, 24), randn(67, 24), randn(8, 40), randn(67, 40), labels, 0.3, 1.5)
    found = K.linear_distillation(*inputs, chunk_size=3)
    assert [part.requires_grad for part in found] == [True, False, False]
    for part, expected in zip(found, linear_distillation_reference(*inputs), strict=True):
        torch.testing.assert_close(part, expected, rtol=2e-3, atol=2e-2)
    found[0].sum().backward()
    assert inputs[2].grad is None


def test_the_students_logits_are_made_once(monkeypatch):
    made = []
    logits = TokenChunks.logits
    monkeypatch.setattr(TokenChunks, "logits", lambda *a: made.append(1) or logits(*a))
    hidden, weight = torch.randn(6, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True)
    teacher = torch.randn(6, 9), torch.randn(11, 9)
    K.linear_distillation(hidden, weight, *teacher, torch.arange(6))[0].sum().backward()
    assert len(made) == 2


@pytest.mark.parametrize("vocab", [51, 101])
@pytest.mark.parametrize("label", [-1, 101])
def test_a_label_beyond_the_vocabulary_shows(label, vocab, device):
    labels = torch.tensor([3, label, -100, 50], device=device)
    hidden, weight = (torch.randn(n, 8, device=device, requires_grad=True) for n in (4, vocab))
    teacher = torch.randn(4, 9, device=device), torch.randn(vocab, 9, device=device)
    losses = K.linear_distillation(hidden, weight, *teacher, labels)
    losses[0].sum().backward()
    assert hidden.grad is not None
    for found in (*losses, hidden.grad.sum(dim=1)):
        assert found.isnan().tolist() == [False, True, False, False]


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

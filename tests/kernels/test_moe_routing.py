import itertools

import minimind_kernels as K
import pytest
import torch
from minimind_kernels.moe_routing import moe_routing_reference

SIZES = K.OPS["moe_routing"].tested["tokens experts experts_per_token"]


@pytest.mark.parametrize("sizes", SIZES)
def test_the_order_of_slots(sizes, randn):
    num_tokens, num_experts, num_slots = sizes
    routing = K.moe_routing(randn(num_tokens, num_experts), num_slots, norm_topk_prob=True)
    assert routing.weights_MS.dtype == torch.float32
    assert_in_order(routing)


def assert_in_order(routing):
    """Counts, offsets and order are what sorting the choices one by one gives."""
    experts = routing.experts_MS.flatten().tolist()
    num_experts = len(routing.counts_E)
    counts = [experts.count(e) for e in range(num_experts)]
    assert routing.counts_E.tolist() == counts
    assert routing.offsets_E1.tolist() == [0, *itertools.accumulate(counts)]
    assert routing.order_P.tolist() == sorted(range(len(experts)), key=lambda i: (experts[i], i))
    for name in ("experts_MS", "counts_E", "order_P", "offsets_E1"):
        assert getattr(routing, name).dtype == torch.int32


def test_equal_logits_go_to_the_lower_expert(device, dtype):
    logits = torch.zeros(6, 5, device=device, dtype=dtype)
    logits[1, 3] = 1
    logits[2, 1:4] = 2
    logits[3, 4] = float("-inf")
    logits[4] = -300
    logits[4, 2] = 300
    routing = K.moe_routing(logits, 2, norm_topk_prob=True)
    expected = [[0, 1], [3, 0], [1, 2], [0, 1], [2, 0], [0, 1]]
    assert routing.experts_MS.tolist() == expected


@pytest.mark.parametrize("num_slots", [1, 2])
def test_all_tokens_to_one_expert(num_slots, device):
    logits = torch.randn(300, 4, device=device)
    logits[:, 2] = 20
    routing = K.moe_routing(logits, num_slots, norm_topk_prob=True)
    assert routing.counts_E[2] == 300
    assert_in_order(routing)


@pytest.mark.parametrize("num_slots", [1, 3])
def test_nan_stays_within_the_tokens(num_slots, device):
    logits = torch.full((5, 4), float("nan"), device=device)
    routing = K.moe_routing(logits, num_slots, norm_topk_prob=True)
    assert sorted(routing.order_P.tolist()) == list(range(5 * num_slots))
    assert_in_order(routing)


def test_one_renormalised_expert_weighs_one_and_teaches_nothing(device):
    logits = torch.randn(70, 4, device=device, requires_grad=True)
    routing = K.moe_routing(logits, 1, norm_topk_prob=True)
    assert torch.equal(routing.weights_MS, torch.ones(70, 1, device=device))
    (grad,) = torch.autograd.grad(
        (routing.weights_MS * torch.randn(70, 1, device=device)).sum(), logits
    )
    assert torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.parametrize("num_slots", [1, 2])
def test_an_even_load_costs_as_much_as_it_has_choices(num_slots, device):
    """With p and the choices even, E · Σ k/E · 1/E = k over the batch, and 1 by document."""
    logits = torch.eye(4, device=device).repeat(6, 1) * 1e-4
    cu_seqlens = torch.tensor([0, 8, 24], dtype=torch.int32, device=device)
    if num_slots == 2:
        logits += torch.eye(4, device=device).roll(1, 0).repeat(6, 1) * 1e-4
    for seq_aux, expected in ((False, float(num_slots)), (True, 1.0)):
        routing = K.moe_routing(
            logits, num_slots, norm_topk_prob=True, cu_seqlens=cu_seqlens, seq_aux=seq_aux
        )
        assert routing.aux_loss.item() == pytest.approx(expected, abs=1e-5)
        assert routing.probs_mean_E.tolist() == pytest.approx([0.25] * 4, abs=1e-5)


@pytest.mark.parametrize("seq_aux", [False, True])
def test_padding_changes_neither_loss_nor_gradient(seq_aux, device):
    """The loss of two documents is that of the tokens alone, each document taken by itself."""
    parts = [torch.randn(n, 4, device=device) for n in (9, 14)]
    padding = torch.randn(5, 4, device=device)
    padded = torch.cat((parts[0], padding, parts[1])).requires_grad_()
    is_counted = torch.ones(28, dtype=torch.bool, device=device)
    is_counted[9:14] = False
    cu_seqlens = torch.tensor([0, 9, 14, 28], dtype=torch.int32, device=device)
    loss = K.moe_routing(
        padded, 2, norm_topk_prob=True, is_counted_M=is_counted, cu_seqlens=cu_seqlens,
        seq_aux=seq_aux,
    ).aux_loss  # fmt: skip

    def alone(logits):
        probs = logits.double().softmax(dim=1)
        choices = torch.zeros_like(probs).scatter(1, probs.topk(2).indices, 1)
        return 4 * (choices.mean(dim=0) * probs.mean(dim=0)).sum()

    alone_parts = [p.clone().requires_grad_() for p in parts]
    expected = (
        (alone(alone_parts[0]) + alone(alone_parts[1])) / 4
        if seq_aux
        else alone(torch.cat(alone_parts))
    )
    torch.testing.assert_close(loss, expected.float())
    (grad,) = torch.autograd.grad(loss, padded)
    grads = torch.autograd.grad(expected, alone_parts)
    torch.testing.assert_close(grad[:9], grads[0], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(grad[14:], grads[1], atol=1e-6, rtol=1e-4)
    assert torch.equal(grad[9:14], torch.zeros_like(padding))


@pytest.mark.parametrize(
    "starts", [(0, 300), (0, 64, 64, 128, 300), (0, 0, 5, 6, 299, 300, 300), (0, *range(150, 301))]
)
def test_documents_begin_and_end_anywhere(starts, device, randn, assert_as_accurate):
    """Within blocks of tokens, on their borders, over many of them; some are empty."""
    cu_seqlens = torch.tensor(starts, dtype=torch.int32, device=device)
    is_counted = torch.arange(300, device=device) % 5 != 2

    def run(op):
        def call(logits):
            routing = op(
                logits, 2, norm_topk_prob=True, is_counted_M=is_counted, cu_seqlens=cu_seqlens,
                seq_aux=True,
            )  # fmt: skip
            return routing.aux_loss, routing.probs_mean_E

        return call

    assert_as_accurate(run(K.moe_routing), run(moe_routing_reference), randn(300, 4))


def test_nothing_counted_costs_nothing(device):
    logits = torch.randn(6, 4, device=device, requires_grad=True)
    is_counted = torch.zeros(6, dtype=torch.bool, device=device)
    routing = K.moe_routing(logits, 2, norm_topk_prob=True, is_counted_M=is_counted)
    assert routing.aux_loss == 0
    assert torch.equal(routing.probs_mean_E, torch.zeros(4, device=device))
    assert torch.equal(torch.autograd.grad(routing.aux_loss, logits)[0], torch.zeros_like(logits))


def test_what_cannot_be_is_named():
    with pytest.raises(ValueError, match="E from 2 to 256"):
        K.moe_routing(torch.ones(3, 257), 1, norm_topk_prob=True)
    with pytest.raises(ValueError, match="1 to 4 of 4 experts, not to 5"):
        K.moe_routing(torch.ones(3, 4), 5, norm_topk_prob=True)
    with pytest.raises(ValueError, match="not \\(4,\\)"):
        K.moe_routing(torch.ones(3, 4), 1, norm_topk_prob=True, is_counted_M=torch.ones(4) > 0)
    with pytest.raises(ValueError, match="give cu_seqlens"):
        K.moe_routing(torch.ones(3, 4), 1, norm_topk_prob=True, seq_aux=True)

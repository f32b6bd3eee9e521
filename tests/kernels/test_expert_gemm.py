from dataclasses import replace

import minimind_kernels as K
import pytest
import torch
from minimind_kernels import backend
from minimind_kernels.expert_gemm import expert_ffn_reference
from minimind_kernels.moe_routing import moe_routing_reference


def build_routing(num_tokens, num_experts, num_slots, device, *, to=None):
    """Random, or every token to the expert `to`, with even lower ones after it."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(num_tokens, num_experts, generator=generator)
    if to is not None:
        logits = -torch.arange(num_experts).float().repeat(num_tokens, 1)
        logits[:, to] = 1
    return moe_routing_reference(logits.to(device), num_slots, norm_topk_prob=True)


def run(op, routing):
    return lambda x, gate_up, down, weights: op(
        x, gate_up, down, replace(routing, weights_MS=weights)
    )


def build_inputs(randn, sizes):
    num_tokens, hidden, ffn, num_experts, num_slots = sizes
    weights = randn(num_tokens, num_slots).detach().float().requires_grad_()
    return (
        randn(num_tokens, hidden),
        randn(num_experts, 2 * ffn, hidden, scale=0.3),
        randn(num_experts, hidden, ffn, scale=0.3),
        weights,
    )


@pytest.mark.parametrize("num_slots", [1, 2])
@pytest.mark.parametrize("to", [0, 3])
def test_all_tokens_to_one_expert(to, num_slots, device, randn, assert_as_accurate):
    sizes = (41, 16, 24, 4, num_slots)
    routing = build_routing(sizes[0], sizes[3], num_slots, device, to=to)
    inputs = build_inputs(randn, sizes)
    assert_as_accurate(run(K.expert_ffn, routing), run(expert_ffn_reference, routing), *inputs)
    out = run(K.expert_ffn, routing)(*inputs)
    grads = torch.autograd.grad(out.float().square().sum(), inputs[1:3])
    for grad in grads:
        for expert, count in enumerate(routing.counts_E.tolist()):
            assert count or torch.equal(grad[expert], torch.zeros_like(grad[expert]))


def test_frozen_experts(device, randn, assert_as_accurate):
    sizes = (23, 12, 20, 3, 2)
    routing = build_routing(sizes[0], sizes[3], sizes[4], device)
    x, gate_up, down, weights = build_inputs(randn, sizes)
    inputs = (x, gate_up.detach(), down.detach(), weights)
    assert_as_accurate(run(K.expert_ffn, routing), run(expert_ffn_reference, routing), *inputs)


def test_views(device, randn, assert_as_accurate):
    sizes = (14, 12, 20, 3, 2)
    routing = build_routing(sizes[0], sizes[3], sizes[4], device)
    _, gate_up, _, weights = build_inputs(randn, sizes)

    def view(op):
        def call(x, gate_up, down, weights):
            out = run(op, routing)(x.T[:, 2:], gate_up.transpose(1, 2), down[:, :12], weights)
            return out.sum(dim=0)  # Whose gradient has a row for all tokens.

        return call

    gate_up = gate_up.detach().transpose(1, 2).contiguous().requires_grad_()
    inputs = (randn(14, 14), gate_up, randn(3, 15, 20, scale=0.3), weights)
    assert_as_accurate(view(K.expert_ffn), view(expert_ffn_reference), *inputs)


def test_the_reference_is_a_loop_over_experts():
    num_tokens, hidden, ffn, num_experts, num_slots = 11, 6, 5, 4, 2
    routing = build_routing(num_tokens, num_experts, num_slots, "cpu")
    x = torch.randn(num_tokens, hidden, dtype=torch.float64)
    gate_up = torch.randn(num_experts, 2 * ffn, hidden, dtype=torch.float64)
    down = torch.randn(num_experts, hidden, ffn, dtype=torch.float64)
    weights = torch.rand(num_tokens, num_slots, dtype=torch.float64)
    expected = torch.zeros_like(x)
    for token in range(num_tokens):
        for slot, expert in enumerate(routing.experts_MS[token].tolist()):
            gate, up = (gate_up[expert] @ x[token]).split(ffn)
            hidden_F = gate / (1 + torch.exp(-gate)) * up
            expected[token] += weights[token, slot] * (down[expert] @ hidden_F)
    actual = run(expert_ffn_reference, routing)(x, gate_up, down, weights)
    torch.testing.assert_close(actual, expected)


def test_wrong_shapes_are_named():
    routing = build_routing(5, 3, 2, "cpu")
    x, gate_up, down = torch.ones(5, 4), torch.ones(3, 6, 4), torch.ones(3, 4, 3)
    with pytest.raises(ValueError, match=r"not \(5, 4\), \(3, 6, 4\), \(3, 4, 2\)"):
        K.expert_ffn(x, gate_up, torch.ones(3, 4, 2), routing)
    with pytest.raises(ValueError, match=r"one dtype .* torch.bfloat16, torch.float32"):
        K.expert_ffn(x, gate_up.bfloat16(), down, routing)
    with pytest.raises(ValueError, match=r"a routing of 5 tokens over 3 experts"):
        K.expert_ffn(x[:4], gate_up, down, routing)


def test_its_forms_say_that_they_make_products(monkeypatch):
    """Which backend.py keeps off old GPUs."""
    said = []
    monkeypatch.setattr(
        backend, "use_triton", lambda *_, has_products=False: said.append(has_products)
    )
    for form in K.OPS["expert_ffn"].forms:
        with pytest.raises(TypeError):
            form(torch.ones(1))
    assert said == [True, True]

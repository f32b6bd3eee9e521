"""The custom operators that torch.compile sees; needs the interpreter or a GPU."""

import os

import minimind_kernels as K
import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
    pytest.skip("needs Triton's interpreter or a GPU", allow_module_level=True)

from minimind_kernels import triton_impl
from minimind_kernels.form import Form

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TABLES = [torch.randn(20, 4, device=DEVICE) for _ in range(2)]
POSITIONS = torch.arange(5, device=DEVICE)
LABELS = torch.tensor([3, -1, 0, 9, 2], device=DEVICE)


def some(*shape):
    return torch.randn(shape, device=DEVICE)


def rotation(norm):
    heads = {"num_heads": 2, "num_kv_heads": 1}
    if norm:
        weights = (some(8), some(8))
        return (some(5, 32), POSITIONS, *TABLES, *weights), heads | {
            "eps": 1e-6,
            "cast_before_weight": True,
        }
    return (some(5, 32), POSITIONS, *TABLES), heads


def rotation_grads():
    return some(5, 2, 8), some(5, 1, 8), some(5, 1, 8)


EXPERTS = K.moe_routing(torch.randn(5, 3, device=DEVICE), 2, norm_topk_prob=True)
ENDS = torch.tensor([0, 2, 5], dtype=torch.int32, device=DEVICE)


def experts():
    """Five tokens of width 4 in ten slots, three experts of width 6."""
    weights = (some(3, 12, 4), some(3, 4, 6))
    return some(5, 4), EXPERTS.weights_MS, EXPERTS.order_P, EXPERTS.offsets_E1, *weights


def routing_grads(*of_loss):
    documents = torch.tensor([0, 1, -1, 1, 1], dtype=torch.int32, device=DEVICE)
    return (
        some(5, 2), some(5, 3), EXPERTS.experts_MS, documents, some(2, 3), some(1), *of_loss
    ), {"norm_topk_prob": True}  # fmt: skip


NORM = {"eps": 1e-5, "cast_before_weight": False}
CALLS = {
    "rms_norm_forward": lambda: ((some(5, 8), some(8)), NORM),
    "rms_norm_backward": lambda: ((some(5, 8), some(5, 8), some(5, 1), some(8)), {}),
    "add_rms_norm_forward": lambda: ((some(5, 8), some(5, 8), some(8)), NORM),
    "add_rms_norm_backward": lambda: (
        (some(5, 8), some(5, 8), some(5, 8), some(5, 1), some(8)),
        {},
    ),
    "swiglu_forward": lambda: ((some(5, 12),), {}),
    "swiglu_backward": lambda: ((some(5, 6), some(5, 12)), {"rebuild": True}),
    "rope_forward": lambda: rotation(norm=False),
    "norm_rope_forward": lambda: rotation(norm=True),
    "rope_backward": lambda: ((*rotation_grads(), POSITIONS, *TABLES), {}),
    "norm_rope_backward": lambda: (
        (*rotation_grads(), some(5, 32), POSITIONS, *TABLES, some(8), some(8)),
        {"eps": 1e-6},
    ),
    "moe_routing_forward": lambda: (
        (some(5, 3), LABELS >= 0, ENDS),
        {"num_experts_per_tok": 2, "norm_topk_prob": True},
    ),
    "moe_routing_backward": lambda: routing_grads(some(3), some()),
    "expert_ffn_forward": lambda: (experts(), {"keep": True}),
    "expert_ffn_backward": lambda: (
        (some(5, 4), *experts(), some(10, 12)),
        {"grad_of_experts": True},
    ),
    "cross_entropy_loss": lambda: ((some(5, 10), LABELS), {}),
    "cross_entropy_loss_and_grad": lambda: ((some(5, 10), LABELS), {}),
    "cross_entropy_grad": lambda: ((some(5, 10), LABELS, some(5), some(5), some(5)), {}),
    "distillation_loss": lambda: ((some(5, 10), some(5, 10), LABELS), {"temperature": 1.5}),
    "distillation_loss_and_grad": lambda: (
        (some(5, 10), some(5, 10), LABELS),
        {"alpha": 0.3, "temperature": 1.5},
    ),
    "kl_loss": lambda: ((some(5, 10), some(5, 10), some(5)), {"temperature": 1.5}),
    "kl_loss_and_grad": lambda: ((some(5, 10), some(5, 10), some(5)), {"temperature": 1.5}),
    "kl_grad": lambda: ((some(5, 10), some(5, 10), some(5)), {"temperature": 1.5}),
}


def test_every_body_is_an_operator_and_is_checked_here():
    assert set(CALLS) == set(triton_impl.__all__) == set(Form.by_name)


@pytest.mark.parametrize("name", CALLS)
def test_operator(name):
    args, kwargs = CALLS[name]()
    operator = getattr(torch.ops.minimind_kernels, name)
    # No gradient is registered: the autograd.Function around the operators has it.
    torch.library.opcheck(operator, args, kwargs, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(
    ("name", "args", "kwargs"),
    [
        (
            "moe_routing_forward",
            (some(5, 3), None, None),
            {"num_experts_per_tok": 1, "norm_topk_prob": False},
        ),
        ("moe_routing_backward", *routing_grads(None, some())),
        ("swiglu_backward", (some(5, 6), some(5, 12)), {"rebuild": False}),
        ("expert_ffn_forward", experts(), {"keep": False}),
        (
            "expert_ffn_backward",
            (some(5, 4), *experts(), some(10, 12)),
            {"grad_of_experts": False},
        ),
    ],
)
def test_operator_without_what_may_be_left_out(name, args, kwargs):
    operator = getattr(torch.ops.minimind_kernels, name)
    torch.library.opcheck(operator, args, kwargs, test_utils=("test_schema", "test_faketensor"))


def test_experts_compiled_whole_with_gradients():
    def model(x, router, gate_up, down):
        routing = K.moe_routing(x @ router, 2, norm_topk_prob=True)
        return K.expert_ffn(x, gate_up, down, routing).square().sum() + routing.aux_loss

    inputs = [some(5, 4), some(4, 3), some(3, 12, 4), some(3, 4, 6)]
    for t in inputs:
        t.requires_grad_()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected, actual = model(*inputs), compiled(*inputs)
    torch.testing.assert_close(actual, expected)
    for e, a in zip(
        torch.autograd.grad(expected, inputs), torch.autograd.grad(actual, inputs), strict=True
    ):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("uniform_grad", [False, True])
def test_compiled_whole_with_gradients(uniform_grad):
    def model(x, weight, gate_up, qkv, norms, head):
        total, y = K.add_rms_norm(x, K.rms_norm(x, weight, 1e-5), weight, 1e-5)
        q, k, v = K.qk_rope(qkv, *TABLES, POSITIONS, 2, 1, norms[0], norms[1])
        y = y + K.swiglu(gate_up) + q.flatten(1)[:, :8] + k.flatten(1) + v.flatten(1)
        y = y + K.swiglu_linear(gate_up, head[:8])
        labels = LABELS.clamp(min=0)
        loss = K.linear_cross_entropy(total + y, head, labels, uniform_grad=uniform_grad).sum()
        loss = loss + K.linear_distillation(y, head, total, head, labels, 0.3, 1.5)[0].sum()
        loss = loss + K.linear_token_loss(y, head, labels, lambda log_p, _: log_p.exp())[0].sum()
        return loss + K.linear_kl(y, head, total, head, 1.5).sum()

    inputs = [some(5, 8), some(8), some(5, 16), some(5, 32), some(2, 8), some(10, 8)]
    for t in inputs:
        t.requires_grad_()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected, actual = model(*inputs), compiled(*inputs)
    torch.testing.assert_close(actual, expected)
    for e, a in zip(
        torch.autograd.grad(expected, inputs), torch.autograd.grad(actual, inputs), strict=True
    ):
        torch.testing.assert_close(a, e)

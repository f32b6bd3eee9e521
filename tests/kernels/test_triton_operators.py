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
    "swiglu_backward": lambda: ((some(5, 6), some(5, 12)), {}),
    "rope_forward": lambda: rotation(norm=False),
    "norm_rope_forward": lambda: rotation(norm=True),
    "rope_backward": lambda: ((*rotation_grads(), POSITIONS, *TABLES), {}),
    "norm_rope_backward": lambda: (
        (*rotation_grads(), some(5, 32), POSITIONS, *TABLES, some(8), some(8)),
        {"eps": 1e-6},
    ),
    "cross_entropy_loss": lambda: ((some(5, 10), LABELS), {}),
    "cross_entropy_loss_and_grad": lambda: ((some(5, 10), LABELS), {}),
    "cross_entropy_grad": lambda: ((some(5, 10), LABELS, some(5), some(5), some(5)), {}),
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


@pytest.mark.parametrize("uniform_grad", [False, True])
def test_compiled_whole_with_gradients(uniform_grad):
    def model(x, weight, gate_up, qkv, norms, head):
        total, y = K.add_rms_norm(x, K.rms_norm(x, weight, 1e-5), weight, 1e-5)
        q, k, v = K.qk_rope(qkv, *TABLES, POSITIONS, 2, 1, norms[0], norms[1])
        y = y + K.swiglu(gate_up) + q.flatten(1)[:, :8] + k.flatten(1) + v.flatten(1)
        labels = LABELS.clamp(min=0)
        loss = K.linear_cross_entropy(total + y, head, labels, uniform_grad=uniform_grad).sum()
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

"""How the tests of the kernels measure error: against fp64, beside the plain PyTorch form."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Outputs = Sequence[Tensor]

_SLACK = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""About one rounding of the result, relative to its largest value: two forms that differ in their
last bits only must not fail for the luck of one of them."""


def forward_and_backward(
    function: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    upstream: Sequence[Tensor],
) -> list[Tensor]:
    """All outputs, then the gradients of the inputs that require one."""
    leaves = [t.detach().clone().requires_grad_(t.requires_grad) for t in inputs]
    outputs = function(*leaves)
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    torch.autograd.backward(
        outputs, [g.to(o.dtype) for g, o in zip(upstream, outputs, strict=True)]
    )
    grads = [leaf.grad for leaf in leaves if leaf.requires_grad]
    assert all(grad is not None for grad in grads)
    return [o.detach() for o in outputs] + [g for g in grads if g is not None]


def assert_as_accurate(
    function: Callable[..., Tensor | tuple[Tensor, ...]],
    reference: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    *,
    ratio: float = 1.5,
) -> None:
    """Each output and gradient of `function` errs at most `ratio` times as much as `reference`
    in the same dtype, both measured against `reference` in fp64, and is the same on a second run.
    """
    wide = [t.detach().double().requires_grad_(t.requires_grad) if t.is_floating_point() else t
            for t in inputs]  # fmt: skip
    outputs = reference(*wide)
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    generator = torch.Generator().manual_seed(7)
    upstream = [torch.randn(o.shape, generator=generator, dtype=torch.float64) for o in outputs]
    # What the narrow forms receive, the exact one must receive too.
    narrow = reference(*inputs)
    narrow = (narrow,) if isinstance(narrow, Tensor) else narrow
    upstream = [g.to(o.dtype).double() for g, o in zip(upstream, narrow, strict=True)]

    exact = forward_and_backward(reference, wide, upstream)
    plain = forward_and_backward(reference, inputs, upstream)
    ours = forward_and_backward(function, inputs, upstream)
    again = forward_and_backward(function, inputs, upstream)
    for i, (e, p, o, a) in enumerate(zip(exact, plain, ours, again, strict=True)):
        assert o.dtype == p.dtype, f"result {i}: {o.dtype}, the plain form {p.dtype}"
        assert o.shape == p.shape, f"result {i}: {o.shape}, the plain form {p.shape}"
        assert torch.equal(o, a), f"result {i} differs on a second run"
        if not e.numel():
            continue
        assert o.isfinite().all(), f"result {i} is not finite"
        error, plain_error = ((t.double() - e).norm().item() for t in (o, p))
        slack = _SLACK[o.dtype] * 0.05 * e.norm().item()
        assert error <= ratio * plain_error + slack, (
            f"result {i} errs by {error:.3g}, the plain form by {plain_error:.3g}"
        )

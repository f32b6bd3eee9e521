"""Liger-Kernel's counterparts of our operations: the same work, in the layout that it is built for.

liger-kernel 0.5 and later (extra `bench`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.kernel_cases import Case, Function

Call = tuple[Function, tuple[Tensor, ...]]
"""An operation, and its inputs."""

WAITS = frozenset({"linear_cross_entropy", "linear_kl", "expert_ffn"})
"""Cases in which Liger reads a number from the GPU, which a CUDA graph cannot record: the count of
targets or of an expert's tiles in the forward pass, whether a gradient is 1 in the backward."""


def liger_call(case: Case) -> Call | None:
    """Liger's function and its inputs for a case; None where it has none or is not installed."""
    try:
        ops = _import()
    except ImportError:
        return None
    sizes, inputs = case.sizes, case.inputs
    num_tokens = inputs[0].shape[0]
    if case.name == "rms_norm":
        mode = "llama" if not sizes.qk_norm else "gemma"
        return lambda x, w: ops["rms_norm"].apply(x, w, 1e-5, 0.0, mode, False), inputs
    if case.name == "swiglu":
        return lambda gate_up: ops["swiglu"].apply(*gate_up.chunk(2, dim=-1)), inputs
    if case.name == "expert_ffn":
        return _experts(case)
    if case.name == "rope":
        return _rope(ops["rope"], case)
    if case.name == "linear_cross_entropy":
        labels = torch.arange(num_tokens, device=inputs[0].device) * 7 % sizes.vocab
        return lambda h, w: ops["cross_entropy"].apply(h, w, labels)[0], inputs
    if case.name == "linear_kl":
        teacher = tuple(torch.randn_like(t).detach() for t in inputs)
        # A generalised Jensen-Shannon divergence; at beta 0 it is KL(teacher ‖ student).
        return lambda h, w: ops["jsd"].apply(h, w, *teacher, None, 0.0, -100, 1.5), inputs
    return None


def _experts(case: Case) -> Call | None:
    """From the experts of each token on, which it sorts itself; since liger-kernel 0.8."""
    try:
        from liger_kernel.ops.fused_moe import (  # type: ignore[import-not-found]
            LigerFusedMoEFunction,
        )
    except ImportError:
        return None
    return (
        lambda x, gate_up, down, weights: LigerFusedMoEFunction.apply(
            x, gate_up, down, case.experts_MS, weights
        ),
        case.inputs,
    )


def _rope(function: Any, case: Case) -> Call:
    """On contiguous q and k of one sequence, as Hugging Face's Llama has them, which it rotates in
    place: ours reads them from the packed product and writes them elsewhere, v included."""
    sizes, qkv = case.sizes, case.inputs[0]
    num_tokens = qkv.shape[0]

    def heads(count: int) -> Tensor:
        x = torch.randn(1, num_tokens, count, sizes.head_size, device=qkv.device, dtype=qkv.dtype)
        return x.requires_grad_()

    angles = torch.randn(1, num_tokens, sizes.head_size // 2, device=qkv.device).repeat(1, 1, 2)
    cos, sin = angles.cos().to(qkv.dtype), angles.sin().to(qkv.dtype)

    def rotate(q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
        # Newer versions hand cos and sin back too.
        return function.apply(q.transpose(1, 2), k.transpose(1, 2), cos, sin)[:2]

    return rotate, (heads(sizes.heads), heads(sizes.kv_heads))


def _import() -> dict[str, Any]:
    from liger_kernel.ops.fused_linear_cross_entropy import (  # type: ignore[import-not-found]
        LigerFusedLinearCrossEntropyFunction,
    )
    from liger_kernel.ops.fused_linear_jsd import (  # type: ignore[import-not-found]
        LigerFusedLinearJSDFunction,
    )
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction  # type: ignore[import-not-found]
    from liger_kernel.ops.rope import LigerRopeFunction  # type: ignore[import-not-found]
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction  # type: ignore[import-not-found]

    return {
        "rms_norm": LigerRMSNormFunction,
        "swiglu": LigerSiLUMulFunction,
        "rope": LigerRopeFunction,
        "cross_entropy": LigerFusedLinearCrossEntropyFunction,
        "jsd": LigerFusedLinearJSDFunction,
    }

"""Every kernel at the sizes of the presets: inputs, the plain form, and what it must move."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import minimind_kernels as K
import torch
from minimind_kernels.linear_distillation import linear_distillation_reference
from minimind_kernels.linear_kl import linear_kl_reference
from minimind_kernels.linear_loss import linear_cross_entropy_reference
from minimind_kernels.linear_token_loss import Rows, linear_token_loss_reference
from minimind_kernels.moe_routing import moe_routing_reference
from minimind_kernels.rms_norm import add_rms_norm_reference, rms_norm_reference
from minimind_kernels.rope import qk_rope_reference
from minimind_kernels.swiglu import swiglu_reference
from torch import Tensor
from torch.nn import functional

Function = Callable[..., Tensor | tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True)
class Sizes:
    """What of a preset the kernels see."""

    preset: str
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    ffn: int
    qk_norm: bool
    vocab: int = 6400
    experts: int = 0
    experts_per_token: int = 0


PRESETS = (
    Sizes("minimind2-small", 512, 8, 2, 64, 1408, qk_norm=False),
    Sizes("minimind2", 768, 8, 2, 96, 2048, qk_norm=False),
    Sizes("minimind2-moe", 640, 8, 2, 80, 1728, qk_norm=False, experts=4, experts_per_token=2),
    Sizes("minimind3", 768, 8, 4, 96, 2432, qk_norm=True),
    Sizes("minimind3-moe", 768, 8, 4, 96, 2432, qk_norm=True, experts=4, experts_per_token=1),
)


@dataclass(frozen=True, slots=True)
class Case:
    """One operation at one size."""

    name: str
    sizes: Sizes
    ours: Function
    plain: Function
    inputs: tuple[Tensor, ...]
    """Those that require a gradient and those that do not, on the case's device."""
    forward_bytes: int
    """Read and written once each, in the case's dtype."""
    backward_bytes: int
    forward_flops: int = 0
    """Of matrix products; 0 where memory is the limit."""
    backward_flops: int = 0
    uniform_grad: bool = False
    """Whether the gradients are made in the forward pass."""
    experts_MS: Tensor | None = None
    """Of expert products, the experts of each token."""


def build_cases(sizes: Sizes, num_tokens: int, dtype: torch.dtype, device: str) -> Iterator[Case]:
    """Each operation that a model of these sizes runs."""

    def leaf(*shape: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(shape, device=device) * scale
        return values.to(dtype).requires_grad_()

    item, tokens, hidden = dtype.itemsize, num_tokens, sizes.hidden
    cast = not sizes.qk_norm
    row = tokens * hidden * item

    def norm(op: Function) -> Function:
        return lambda x, weight: op(x, weight, 1e-5, cast)

    def add_norm(op: Function) -> Function:
        return lambda x, residual, weight: op(x, residual, weight, 1e-5, cast)

    x, residual, weight = leaf(tokens, hidden), leaf(tokens, hidden), leaf(hidden)
    yield Case(
        "rms_norm", sizes, norm(K.rms_norm), norm(rms_norm_reference), (x, weight), 2 * row, 3 * row
    )
    yield Case(
        "add_rms_norm", sizes, add_norm(K.add_rms_norm), add_norm(add_rms_norm_reference),
        (x, residual, weight), 4 * row, 4 * row,
    )  # fmt: skip

    angles = torch.arange(1024, device=device)[:, None] * 1e6 ** (
        -torch.arange(0, sizes.head_size, 2, device=device) / sizes.head_size
    )
    cos, sin = angles.cos(), angles.sin()
    positions = torch.arange(tokens, device=device) % 1024

    def rope(op: Function) -> Function:
        return lambda qkv, *norms: op(
            qkv, cos, sin, positions, sizes.heads, sizes.kv_heads, *norms, 1e-6, cast
        ) if norms else op(qkv, cos, sin, positions, sizes.heads, sizes.kv_heads)  # fmt: skip

    rotated = tokens * (sizes.heads + sizes.kv_heads) * sizes.head_size * item
    values = tokens * sizes.kv_heads * sizes.head_size * item
    qkv = leaf(tokens, (sizes.heads + 2 * sizes.kv_heads) * sizes.head_size)
    norms = (leaf(sizes.head_size), leaf(sizes.head_size)) if sizes.qk_norm else ()
    yield Case(
        "qk_norm_rope" if norms else "rope", sizes, rope(K.qk_rope), rope(qk_rope_reference),
        (qkv, *norms), 2 * rotated, (3 if norms else 2) * rotated + 2 * values,
    )  # fmt: skip

    ffn_row = tokens * sizes.ffn * item
    yield Case(
        "swiglu", sizes, K.swiglu, swiglu_reference, (leaf(tokens, 2 * sizes.ffn),),
        3 * ffn_row, 5 * ffn_row,
    )  # fmt: skip
    down, down_product = leaf(hidden, sizes.ffn, scale=0.02), 2 * tokens * hidden * sizes.ffn
    yield Case(
        "swiglu_linear", sizes, K.swiglu_linear,
        lambda gate_up, weight: functional.linear(swiglu_reference(gate_up), weight),
        (leaf(tokens, 2 * sizes.ffn), down), 4 * ffn_row + row, 8 * ffn_row + 2 * row,
        down_product, 2 * down_product,
    )  # fmt: skip

    if sizes.experts:
        yield from _build_moe_cases(sizes, leaf, tokens, dtype)

    labels = torch.arange(tokens, device=device) * 7 % sizes.vocab
    product = 2 * tokens * hidden * sizes.vocab
    states, head = leaf(tokens, hidden), leaf(sizes.vocab, hidden, scale=0.02)
    head_bytes = 2 * row + 2 * sizes.vocab * hidden * item
    yield Case(
        "linear_cross_entropy", sizes,
        lambda h, w: K.linear_cross_entropy(h, w, labels, uniform_grad=True),
        lambda h, w: linear_cross_entropy_reference(h, w, labels),
        (states, head), head_bytes, 0, 3 * product, 0, uniform_grad=True,
    )  # fmt: skip
    yield Case(
        "linear_cross_entropy_any_grad", sizes,
        lambda h, w: K.linear_cross_entropy(h, w, labels),
        lambda h, w: linear_cross_entropy_reference(h, w, labels),
        (states, head), head_bytes // 2, head_bytes, product, 2 * product,
    )  # fmt: skip
    old_log_prob, advantage = (torch.randn(tokens, device=device) for _ in range(2))

    def ppo(log_prob: Tensor, rows: Rows) -> Tensor:
        ratio = (log_prob - old_log_prob[rows]).exp()
        return -torch.minimum(ratio * advantage[rows], ratio.clamp(0.8, 1.2) * advantage[rows])

    yield Case(
        "linear_token_loss", sizes,
        lambda h, w: K.linear_token_loss(h, w, labels, ppo)[0],
        lambda h, w: linear_token_loss_reference(h, w, labels, ppo)[0],
        (states, head), head_bytes, 0, 3 * product, 0, uniform_grad=True,
    )  # fmt: skip
    teacher, teacher_head = leaf(tokens, hidden).detach(), leaf(sizes.vocab, hidden).detach()
    yield Case(
        "linear_kl", sizes,
        lambda h, w: K.linear_kl(h, w, teacher, teacher_head, 1.5, uniform_grad=True),
        lambda h, w: linear_kl_reference(h, w, teacher, teacher_head, 1.5),
        (states, head), 2 * head_bytes, 0, 4 * product, 0, uniform_grad=True,
    )  # fmt: skip
    targets = (teacher, teacher_head, labels, 0.5, 1.5)
    yield Case(
        "linear_distillation", sizes,
        lambda h, w: K.linear_distillation(h, w, *targets)[0],
        lambda h, w: linear_distillation_reference(h, w, *targets)[0],
        (states, head), 2 * head_bytes, 0, 4 * product, 0, uniform_grad=True,
    )  # fmt: skip


def _build_moe_cases(
    sizes: Sizes, leaf: Callable[..., Tensor], tokens: int, dtype: torch.dtype
) -> Iterator[Case]:
    num_experts, num_slots, item = sizes.experts, sizes.experts_per_token, dtype.itemsize
    logits = leaf(tokens, num_experts)
    # The 2-series takes its auxiliary loss by document, the 3-series over the batch.
    seq_aux = not sizes.qk_norm
    is_counted = torch.arange(tokens, device=logits.device) % 1024 < 1008
    cu_seqlens = torch.arange(0, tokens + 1, 256, device=logits.device, dtype=torch.int32)
    cu_seqlens[-1] = tokens

    def route(op: Callable[..., K.Routing]) -> Callable[[Tensor], K.Routing]:
        return lambda logits: op(
            logits, num_slots, norm_topk_prob=True, is_counted_M=is_counted,
            cu_seqlens=cu_seqlens, seq_aux=seq_aux,
        )  # fmt: skip

    def differentiable(routing: K.Routing) -> tuple[Tensor, ...]:
        return routing.weights_MS, routing.aux_loss

    yield Case(
        "moe_routing", sizes, lambda z: differentiable(route(K.moe_routing)(z)),
        lambda z: differentiable(route(moe_routing_reference)(z)), (logits,),
        tokens * (num_experts * item + num_slots * 12 + 4),
        tokens * (2 * num_experts * item + num_slots * 8 + 4),
    )  # fmt: skip

    with torch.no_grad():
        routing = route(moe_routing_reference)(logits)
    hidden, ffn = sizes.hidden, sizes.ffn

    def experts(op: Callable[..., Tensor]) -> Function:
        return lambda x, gate_up, down, weights: op(
            x, gate_up, down, replace(routing, weights_MS=weights)
        )

    row, product = tokens * hidden * item, 2 * tokens * num_slots * hidden * ffn
    kept, weights = 2 * tokens * num_slots * ffn * item, 3 * num_experts * hidden * ffn * item
    yield Case(
        "expert_ffn", sizes, experts(K.expert_ffn), experts(grouped_expert_ffn),
        (
            leaf(tokens, hidden), leaf(num_experts, 2 * ffn, hidden, scale=0.02),
            leaf(num_experts, hidden, ffn, scale=0.02),
            routing.weights_MS.requires_grad_(),
        ),
        2 * row + kept + weights, 3 * row + kept + 2 * weights, 3 * product, 6 * product,
        experts_MS=routing.experts_MS,
    )  # fmt: skip


def grouped_expert_ffn(x: Tensor, gate_up: Tensor, down: Tensor, routing: K.Routing) -> Tensor:
    """With PyTorch's own grouped products, which wait for nothing: the plain form to beat."""
    order, ends = routing.order_P.long(), routing.offsets_E1[1:]
    tokens = order // routing.weights_MS.shape[1]
    product = functional.grouped_mm(x[tokens], gate_up.transpose(1, 2), offs=ends)
    y = functional.grouped_mm(swiglu_reference(product), down.transpose(1, 2), offs=ends)
    weighted = y * routing.weights_MS.flatten()[order].unsqueeze(1)
    return torch.zeros_like(x).index_add(0, tokens, weighted.to(x.dtype))

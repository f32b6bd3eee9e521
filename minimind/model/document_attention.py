"""Computes causal attention inside each packed document: by one flash-attention launch on a GPU, by
buckets of documents of similar length on a CPU, and by padded documents on a GPU where flash
attention does not run.

A plan is made once per forward, and every layer uses it.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minimind.model.flash_attention import why_not_flash
from minimind.runtime.devices import send
from minimind.types import Batch

logger = logging.getLogger("minimind")

FLASH_FROM = 512
"""On a CPU, a document of at least this length goes through PyTorch's flash kernel alone, which
skips the half of the scores that the mask hides and stores none."""
SCORES_PER_BUCKET = 2**19
"""The most scores (documents x heads x length²) in a bucket, so that they stay in a CPU's caches
between the products and the softmax."""
LEAST_FILLED = 0.75
"""Every document fills at least this share of its padded length. A smaller share means fewer
launches and more padding."""


def plan_attention(
    batch: Batch, num_heads: int, head_size: int, dtype: torch.dtype
) -> BucketPlan | VarlenPlan | PaddedPlan:
    """Plans attention for the documents of `batch` on their device; logs once which kind of
    attention a GPU runs, and why. Does not wait for the device."""
    device = batch.cu_seqlens.device
    if device.type != "cuda":
        return BucketPlan.build(batch.bounds, num_heads, device)
    capability = None if torch.version.hip else torch.cuda.get_device_capability(device)
    problem = why_not_flash(dtype, head_size, capability)
    if not torch.compiler.is_compiling():
        _say_once(problem)
    if problem is None:
        return VarlenPlan(batch.cu_seqlens, batch.max_len)
    return PaddedPlan.build(batch.bounds, device)


@functools.cache
def _say_once(problem: str | None) -> None:
    if problem is None:
        logger.info("attention: flash attention, by document")
    else:
        logger.info("attention: scaled_dot_product_attention over padded documents: %s", problem)


@dataclass(frozen=True, slots=True)
class VarlenPlan:
    """Calls PyTorch's variable-length flash attention, without padding, masks or waits of the
    host."""

    cu_seqlens: Tensor
    max_len: int

    def attend(self, q_MNH: Tensor, k_MKH: Tensor, v_MKH: Tensor) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        cu, longest = self.cu_seqlens, self.max_len
        options = varlen_options()
        out = varlen_attn(q_MNH, k_MKH, v_MKH, cu, cu, longest, longest, **options)
        return out if isinstance(out, Tensor) else out[0]


@functools.cache
def varlen_options() -> dict[str, Any]:
    """Gives the arguments by which the installed PyTorch's varlen_attn computes causal attention
    with fewer key heads: `is_causal` up to 2.10, `window_size` later; `enable_gqa` from 2.12 on,
    before which fewer key heads need no argument."""
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters
    causal = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    return causal | ({"enable_gqa": True} if "enable_gqa" in known else {})


@dataclass(frozen=True, slots=True)
class Bucket:
    """Lays out documents of similar length as [documents, length], padded at their ends."""

    gather_BL: Tensor
    """int64: the token at each position. Padding may be any token: the causal mask hides it from
    the document's own tokens, and its result is dropped."""
    tokens: Tensor
    """int64: every token of the bucket once."""
    places: Tensor
    """int64: for each of `tokens`, its index in gather_BL laid flat."""

    def gather(self, x_MNH: Tensor, num_kv: int, zero_padding: bool = False) -> Tensor:
        """Gives [documents · K, N/K · length, H]: query heads that share a key head are stacked."""
        (documents, length), (_, heads, size) = self.gather_BL.shape, x_MNH.shape
        if zero_padding:
            x = x_MNH.new_zeros(documents * length, heads, size)
            x.index_copy_(0, self.places, x_MNH.index_select(0, self.tokens))
        else:
            x = x_MNH.index_select(0, self.gather_BL.flatten())
        x = x.view(documents, length, num_kv, heads // num_kv, size).permute(0, 2, 3, 1, 4)
        return x.reshape(documents * num_kv, -1, size)

    def scatter(self, x: Tensor, out_MNH: Tensor) -> None:
        """Writes x, laid out as `gather` gives it, into `out_MNH`, without the padding."""
        documents, length = self.gather_BL.shape
        _, heads, size = out_MNH.shape
        x = x.view(documents, x.shape[0] // documents, -1, length, size)
        x = x.permute(0, 3, 1, 2, 4).reshape(documents * length, heads, size)
        out_MNH.index_copy_(0, self.tokens, x.index_select(0, self.places))


@dataclass(frozen=True, slots=True)
class BucketPlan:
    """Computes batched products over documents of similar length, and long documents one by one
    through flash attention."""

    buckets: tuple[Bucket, ...]
    long: tuple[tuple[int, int], ...]

    @classmethod
    def build(cls, cu_seqlens: Sequence[int], num_heads: int, device: torch.device) -> BucketPlan:
        spans = [(stop - start, start) for start, stop in itertools.pairwise(cu_seqlens)]
        long = tuple((start, start + n) for n, start in spans if n >= FLASH_FROM)
        short = sorted((s for s in spans if 0 < s[0] < FLASH_FROM), reverse=True)
        buckets, first = [], 0
        while first < len(short):
            length = short[first][0]
            size = max(1, SCORES_PER_BUCKET // (num_heads * length * length))
            same = short[first : first + size]
            first += len(same)
            buckets.append(_build_bucket(same, length, device))
        return cls(tuple(buckets), long)

    def attend(self, q_MNH: Tensor, k_MKH: Tensor, v_MKH: Tensor) -> Tensor:
        out_MNH: Tensor = _BucketAttention.apply(q_MNH, k_MKH, v_MKH, self.buckets)  # type: ignore
        if not self.long:
            return out_MNH
        pieces, end = [], 0
        for start, stop in self.long:
            q, k, v = (x[start:stop].transpose(0, 1)[None] for x in (q_MNH, k_MKH, v_MKH))
            flash = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            pieces += [out_MNH[end:start], flash[0].transpose(0, 1)]
            end = stop
        return torch.cat([*pieces, out_MNH[end:]])


def _build_bucket(spans: list[tuple[int, int]], length: int, device: torch.device) -> Bucket:
    lengths = torch.tensor([n for n, _ in spans])
    starts = torch.tensor([start for _, start in spans])
    offsets = torch.arange(length)
    real_BL = offsets < lengths[:, None]
    gather_BL = starts[:, None] + torch.minimum(offsets, lengths[:, None] - 1)
    places = real_BL.flatten().nonzero().squeeze(1)
    tokens = gather_BL.flatten()[places]
    return Bucket(gather_BL.to(device), tokens.to(device), places.to(device))


@dataclass(frozen=True, slots=True)
class PaddedPlan:
    """Calls PyTorch's scaled_dot_product_attention on documents padded to similar lengths. On a GPU
    where flash attention does not run (fp32, a GPU before Ampere, other head sizes) it uses the
    memory-efficient kernel. The padding follows each document, so the causal mask hides it."""

    place_M: Tensor
    """int64: the index of each token among the padded documents laid flat."""
    shapes: tuple[tuple[int, int], ...]
    """[documents, padded length] of each bucket, in order."""

    @classmethod
    def build(cls, bounds: Sequence[int], device: torch.device) -> PaddedPlan:
        lengths = [stop - start for start, stop in itertools.pairwise(bounds)]
        shapes: list[tuple[int, int]] = []
        shifts, end = [0] * len(lengths), 0
        for document in sorted(range(len(lengths)), key=lambda d: -lengths[d]):
            if not shapes or lengths[document] < LEAST_FILLED * shapes[-1][1]:
                shapes.append((0, lengths[document]))
            documents, padded = shapes[-1]
            shapes[-1] = (documents + 1, padded)
            shifts[document] = end - bounds[document]
            end += padded
        shifts_D, lengths_D = send([shifts, lengths], device)
        tokens_M = torch.arange(bounds[-1], device=device)
        # With the size given, it need not ask the device for it.
        shifts_M = torch.repeat_interleave(shifts_D, lengths_D, output_size=bounds[-1])
        return cls(tokens_M + shifts_M, tuple(s for s in shapes if s[1]))

    def attend(self, q_MNH: Tensor, k_MKH: Tensor, v_MKH: Tensor) -> Tensor:
        _, heads, size = q_MNH.shape
        # The memory-efficient kernel needs as many key heads as query heads.
        group = heads // k_MKH.shape[1]
        repeated = (q_MNH, *(x.repeat_interleave(group, dim=1) for x in (k_MKH, v_MKH)))
        sizes = [documents * length for documents, length in self.shapes]
        split = (self._pad(x).split(sizes) for x in repeated)
        pieces = []
        for shape, *parts in zip(self.shapes, *split, strict=True):
            q, k, v = (x.unflatten(0, shape).transpose(1, 2) for x in parts)
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=size**-0.5)
            pieces.append(out.transpose(1, 2).flatten(0, 1))
        return torch.cat(pieces).index_select(0, self.place_M)[..., :size]

    def _pad(self, x_MNH: Tensor) -> Tensor:
        """Gives [padded tokens, N, H rounded up to a multiple of 8], since the fast kernels need
        such a size; the added zeros add nothing to q·k."""
        _, heads, size = x_MNH.shape
        total = sum(documents * length for documents, length in self.shapes)
        padded = x_MNH.new_zeros(total, heads, -(-size // 8) * 8)
        padded[..., :size].index_copy_(0, self.place_M, x_MNH)
        return padded


@functools.cache
def _causal_bias(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Gives 0 where a query may see a key, else -inf: [length, length]."""
    return torch.full((length, length), float("-inf"), dtype=dtype, device=device).triu_(1)


def _probabilities(q: Tensor, k: Tensor, bucket: Bucket, scale: float) -> Tensor:
    length = bucket.gather_BL.shape[1]
    # One cached mask, of the largest size, serves all buckets.
    bias = _causal_bias(FLASH_FROM - 1, q.dtype, q.device)[:length, :length]
    bias = bias.repeat(q.shape[1] // length, 1)
    scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=scale)
    # A softmax to bf16 takes up to twice as long where 32 does not divide the length.
    wide = torch.promote_types(q.dtype, torch.float32)
    return torch.softmax(scores, dim=-1, dtype=wide).to(q.dtype)


class _BucketAttention(torch.autograd.Function):
    """Computes attention over buckets. Query heads that share a key head are rows of one product,
    so keys are never repeated.

    The backward is written by hand, because PyTorch's keeps the scores before and after the mask
    and scatter-adds gradients that never collide. It computes the probabilities again: kept, they
    would be a fifth of a training step's memory. Tokens in no bucket get zeros.
    """

    @staticmethod
    def forward(
        ctx: Any, q_MNH: Tensor, k_MKH: Tensor, v_MKH: Tensor, buckets: tuple[Bucket, ...]
    ) -> Tensor:
        out_MNH = torch.zeros(q_MNH.shape, dtype=q_MNH.dtype, device=q_MNH.device)
        num_kv, scale = k_MKH.shape[1], q_MNH.shape[2] ** -0.5
        for bucket in buckets:
            q, k, v = (bucket.gather(x, num_kv) for x in (q_MNH, k_MKH, v_MKH))
            bucket.scatter(torch.bmm(_probabilities(q, k, bucket, scale), v), out_MNH)
        ctx.buckets = buckets
        ctx.save_for_backward(q_MNH, k_MKH, v_MKH)
        return out_MNH

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_MNH, k_MKH, v_MKH = ctx.saved_tensors
        dq_MNH, dk_MKH, dv_MKH = (
            torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (q_MNH, k_MKH, v_MKH)
        )
        num_kv, scale = k_MKH.shape[1], q_MNH.shape[2] ** -0.5
        for bucket in ctx.buckets:
            q, k, v = (bucket.gather(x, num_kv) for x in (q_MNH, k_MKH, v_MKH))
            probs = _probabilities(q, k, bucket, scale)
            dout = bucket.gather(grads[0], num_kv, zero_padding=True)
            dprobs = torch.bmm(dout, v.transpose(1, 2))
            bucket.scatter(torch.bmm(probs.transpose(1, 2), dout), dv_MKH)
            dscores = torch.ops.aten._softmax_backward_data(dprobs, probs, -1, probs.dtype).mul_(
                scale
            )
            bucket.scatter(torch.bmm(dscores, k), dq_MNH)
            bucket.scatter(torch.bmm(dscores.transpose(1, 2), q), dk_MKH)
        return dq_MNH, dk_MKH, dv_MKH, None

"""Computes MoE routing in two launches: choose and count by block, then put slots in order by
expert.

Each block of tokens has a program, a row of counts and, where the loss is over all tokens, a row of
partial sums. By document, each part of a document that lies in one block has a program and such a
row of its own: block b's part of document d is row b + d. No other part has that row, since from
one part to the next b, d or both grow. The second launch (moe_order.py) adds rows in a fixed order,
without atomics, so that every run gives the same bits.
"""

from __future__ import annotations

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from .config import Tile, Tiles
from .launch import block, cdiv, device_of, launch, rows_per_tile
from .moe_choice import find_part, load_logits, rank_experts, softmax
from .moe_order import order_slots

_TILE = Tile(elements=1024, num_warps=4, programs=2)
# With half the warps, the masks of its many rows spill from scalar registers to memory.
_TILES = Tiles("moe_routing", _TILE, gfx942=_TILE)
_MOST_BLOCK_ROWS = 64
"""The most tokens of a tile: with few experts a block would leave most multiprocessors idle."""


def moe_routing_forward(
    logits_ME: Tensor,
    is_counted_M: Tensor | None,
    cu_seqlens: Tensor | None,
    *,
    num_experts_per_tok: int,
    norm_topk_prob: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gives the fields of Routing; the document of each token, the loss's slope, 1 / counted
    tokens."""
    logits_ME = logits_ME.contiguous()
    num_tokens, num_experts = logits_ME.shape
    device = device_of(logits_ME)
    tile = device.tile(_TILES)
    block_experts = block(num_experts)
    block_rows = min(rows_per_tile(tile, block_experts), _MOST_BLOCK_ROWS)
    # A block is several tiles where there are more tiles than programs.
    num_tiles = max(cdiv(num_tokens, block_rows), 1)
    tiles_per_block = cdiv(num_tiles, device.num_multiprocessors * tile.programs)
    num_blocks = cdiv(num_tiles, tiles_per_block)
    num_documents = 0 if cu_seqlens is None else len(cu_seqlens) - 1
    num_document_parts = 0 if cu_seqlens is None else num_blocks + num_documents - 1
    num_parts = num_document_parts or num_blocks
    empty = partial(torch.empty, dtype=torch.int32, device=logits_ME.device)
    experts_MS, document_M = empty(num_tokens, num_experts_per_tok), empty(num_tokens)
    weights_MS = torch.empty_like(experts_MS, dtype=torch.float32)
    block_counts_BE = empty(num_blocks, num_experts)
    part_sizes, part_loads = empty(num_parts), empty(num_parts, num_experts)
    part_sums = torch.empty_like(part_loads, dtype=torch.float32)
    sizes = {
        "num_tokens": num_tokens,
        "block_tokens": tiles_per_block * block_rows,
        "num_documents": num_documents,
        "NUM_EXPERTS": num_experts,
        "NUM_SLOTS": num_experts_per_tok,
        "BLOCK_EXPERTS": block_experts,
        "BY_DOCUMENT": cu_seqlens is not None,
    }
    cu_seqlens = experts_MS if cu_seqlens is None else cu_seqlens
    is_counted = experts_MS if is_counted_M is None else is_counted_M.contiguous().view(torch.uint8)
    launch(
        _choose_kernel,
        (num_blocks + num_document_parts,),
        tile.num_warps,
        logits_ptr=logits_ME,
        is_counted_ptr=is_counted,
        cu_seqlens_ptr=cu_seqlens,
        weights_ptr=weights_MS,
        experts_ptr=experts_MS,
        document_ptr=document_M,
        block_counts_ptr=block_counts_BE,
        part_sizes_ptr=part_sizes,
        part_loads_ptr=part_loads,
        part_sums_ptr=part_sums,
        num_blocks=num_blocks,
        eps=eps,
        BLOCK_ROWS=block_rows,
        NORMALISE=norm_topk_prob,
        HAS_UNCOUNTED=is_counted_M is not None,
        **sizes,
    )
    order = order_slots(
        experts_MS, cu_seqlens, block_counts_BE, part_sizes, part_loads, part_sums, sizes
    )
    order_P, counts_E, offsets_E1, probs_mean_E, aux_loss, slope_XE, inverse_count_1 = order
    return (
        weights_MS, experts_MS, counts_E, order_P, offsets_E1, probs_mean_E, aux_loss, document_M,
        slope_XE, inverse_count_1,
    )  # fmt: skip


def moe_routing_backward(
    grad_weights_MS: Tensor,
    logits_ME: Tensor,
    experts_MS: Tensor,
    document_M: Tensor,
    slope_XE: Tensor,
    inverse_count_1: Tensor,
    grad_mean_E: Tensor | None,
    grad_aux: Tensor | None,
    *,
    norm_topk_prob: bool,
    eps: float,
) -> Tensor:
    """Gives the gradient of the logits."""
    logits_ME = logits_ME.contiguous()
    num_tokens, num_experts = logits_ME.shape
    grad_logits_ME = torch.empty_like(logits_ME)
    tile = device_of(logits_ME).tile(_TILES)
    block_experts = block(num_experts)
    block_rows = rows_per_tile(tile, block_experts)
    launch(
        _backward_kernel,
        (cdiv(num_tokens, block_rows),),
        tile.num_warps,
        grad_weights_ptr=grad_weights_MS.contiguous(),
        logits_ptr=logits_ME,
        experts_ptr=experts_MS,
        document_ptr=document_M,
        slope_ptr=slope_XE,
        inverse_count_ptr=inverse_count_1,
        grad_mean_ptr=slope_XE if grad_mean_E is None else grad_mean_E.contiguous(),
        grad_aux_ptr=slope_XE if grad_aux is None else grad_aux,
        grad_logits_ptr=grad_logits_ME,
        num_tokens=num_tokens,
        eps=eps,
        NUM_EXPERTS=num_experts,
        NUM_SLOTS=experts_MS.shape[1],
        BLOCK_ROWS=block_rows,
        BLOCK_EXPERTS=block_experts,
        NORMALISE=norm_topk_prob,
        HAS_GRAD_MEAN=grad_mean_E is not None,
        HAS_GRAD_AUX=grad_aux is not None,
    )
    return grad_logits_ME


@triton.jit(do_not_specialize=["num_tokens", "block_tokens", "num_documents", "num_blocks"])
def _choose_kernel(
    logits_ptr,
    is_counted_ptr,
    cu_seqlens_ptr,
    weights_ptr,
    experts_ptr,
    document_ptr,
    block_counts_ptr,
    part_sizes_ptr,
    part_loads_ptr,
    part_sums_ptr,
    num_tokens,
    block_tokens,
    num_documents,
    num_blocks,
    eps,
    NUM_EXPERTS: tl.constexpr,
    NUM_SLOTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_EXPERTS: tl.constexpr,
    NORMALISE: tl.constexpr,
    HAS_UNCOUNTED: tl.constexpr,
    BY_DOCUMENT: tl.constexpr,
):
    """Chooses: each of the first programs has a block of tokens and writes its choices. They also
    compute the sums for the loss or, by document, further programs do, one for each part of a
    document in a block, which choose a second time."""
    program = tl.program_id(0)
    has_block = program < num_blocks
    part = program
    document = 0
    begin = program * block_tokens
    end = tl.minimum(begin + block_tokens, num_tokens)
    # The first condition is decided when compiling.
    if BY_DOCUMENT:  # noqa: SIM102
        if program >= num_blocks:
            part = program - num_blocks
            document, begin, end = find_part(cu_seqlens_ptr, part, num_documents, block_tokens)
    experts = tl.arange(0, BLOCK_EXPERTS)
    is_expert = experts < NUM_EXPERTS
    counts = tl.zeros((BLOCK_EXPERTS,), tl.int32)
    loads = tl.zeros((BLOCK_EXPERTS,), tl.int32)
    sums = tl.zeros((BLOCK_ROWS, BLOCK_EXPERTS), tl.float32)
    size = tl.zeros((BLOCK_ROWS,), tl.int32)
    for first in range(begin, end, BLOCK_ROWS):
        rows = (first + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
        in_range = rows < end
        logits = load_logits(logits_ptr, rows, in_range, NUM_EXPERTS, BLOCK_EXPERTS)
        probs = softmax(logits)
        rank = rank_experts(logits, NUM_EXPERTS, NUM_SLOTS, BLOCK_EXPERTS)
        is_chosen = in_range[:, None] & (rank > 0)
        is_counted = in_range
        if HAS_UNCOUNTED:
            is_counted = in_range & (tl.load(is_counted_ptr + rows, in_range, other=0) != 0)
        counts += tl.sum(is_chosen.to(tl.int32), axis=0)
        loads += tl.sum((is_chosen & is_counted[:, None]).to(tl.int32), axis=0)
        sums += tl.where(is_counted[:, None], probs, 0.0)
        size += is_counted.to(tl.int32)
        if has_block:
            total = tl.sum(tl.where(rank > 0, probs, 0.0), axis=1) + eps
            for slot in tl.static_range(NUM_SLOTS):
                is_slot = rank == slot + 1
                weight = tl.sum(tl.where(is_slot, probs, 0.0), axis=1)
                if NORMALISE:
                    weight = tl.div_rn(weight, total)
                expert = tl.sum(tl.where(is_slot, experts[None, :], 0), axis=1)
                tl.store(weights_ptr + rows * NUM_SLOTS + slot, weight, in_range)
                tl.store(experts_ptr + rows * NUM_SLOTS + slot, expert, in_range)
        if not BY_DOCUMENT:
            tl.store(document_ptr + rows, tl.where(is_counted, 0, -1), in_range)
        elif not has_block:
            tl.store(document_ptr + rows, tl.where(is_counted, document, -1), in_range)
    if has_block:
        tl.store(block_counts_ptr + program * NUM_EXPERTS + experts, counts, is_expert)
    # By document, a block's own sums are of no use.
    keeps = not has_block if BY_DOCUMENT else has_block
    if keeps:
        tl.store(part_sizes_ptr + part, tl.sum(size, axis=0))
        tl.store(part_loads_ptr + part * NUM_EXPERTS + experts, loads, is_expert)
        tl.store(part_sums_ptr + part * NUM_EXPERTS + experts, tl.sum(sums, axis=0), is_expert)


@triton.jit(do_not_specialize=["num_tokens"])
def _backward_kernel(
    grad_weights_ptr,
    logits_ptr,
    experts_ptr,
    document_ptr,
    slope_ptr,
    inverse_count_ptr,
    grad_mean_ptr,
    grad_aux_ptr,
    grad_logits_ptr,
    num_tokens,
    eps,
    NUM_EXPERTS: tl.constexpr,
    NUM_SLOTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_EXPERTS: tl.constexpr,
    NORMALISE: tl.constexpr,
    HAS_GRAD_MEAN: tl.constexpr,
    HAS_GRAD_AUX: tl.constexpr,
):
    """Computes dp from the weights, the mean and the loss; then d_logits = p·(dp - Σ p·dp)."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    in_range = rows < num_tokens
    experts = tl.arange(0, BLOCK_EXPERTS)[None, :]
    mask = in_range[:, None] & (experts < NUM_EXPERTS)
    probs = softmax(load_logits(logits_ptr, rows, in_range, NUM_EXPERTS, BLOCK_EXPERTS))

    is_chosen = tl.zeros((BLOCK_ROWS, BLOCK_EXPERTS), tl.int1)
    grad_probs = tl.zeros((BLOCK_ROWS, BLOCK_EXPERTS), tl.float32)
    for slot in tl.static_range(NUM_SLOTS):
        expert = tl.load(experts_ptr + rows * NUM_SLOTS + slot, in_range, other=-1)[:, None]
        grad = tl.load(grad_weights_ptr + rows * NUM_SLOTS + slot, in_range, other=0.0)[:, None]
        is_chosen = is_chosen | (expert == experts)
        grad_probs = tl.where(expert == experts, grad, grad_probs)
    if NORMALISE:
        total = tl.sum(tl.where(is_chosen, probs, 0.0), axis=1)[:, None] + eps
        # One weight alone is exactly 1, and its gradient exactly 0.
        weights = tl.div_rn(probs, total + tl.zeros_like(probs))
        projection = tl.sum(grad_probs * weights, axis=1)[:, None]
        grad_probs = tl.where(is_chosen, (grad_probs - projection) / total, 0.0)

    document = tl.load(document_ptr + rows, in_range, other=-1)[:, None]
    is_counted = mask & (document >= 0)
    if HAS_GRAD_AUX:
        slope = tl.load(slope_ptr + document * NUM_EXPERTS + experts, is_counted, other=0.0)
        grad_probs += tl.load(grad_aux_ptr) * slope
    if HAS_GRAD_MEAN:
        grad_mean = tl.load(grad_mean_ptr + experts, experts < NUM_EXPERTS, other=0.0)
        grad_mean *= tl.load(inverse_count_ptr)
        grad_probs += tl.where(is_counted, grad_mean, 0.0)
    projection = tl.sum(grad_probs * probs, axis=1)[:, None]
    grad_logits = probs * (grad_probs - projection)
    tl.store(
        grad_logits_ptr + rows[:, None] * NUM_EXPERTS + experts,
        grad_logits.to(grad_logits_ptr.dtype.element_ty),
        mask,
    )

"""Computes the second launch of MoE routing: slots in order by expert, and the loss from partial
sums.

A program is one warp: nothing waits at a barrier, and scans stay within one wavefront. Over more,
compilers for AMD are known to get them wrong (ROCm/triton#947).
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .config import Tile, Tiles
from .launch import device_of, launch, rows_per_tile

_TILES = Tiles(
    "moe_order",
    Tile(elements=512, num_warps=1),
    # With twice the rows, their masks spill from scalar registers to memory.
    gfx942=Tile(elements=256, num_warps=1),
)
_MOST_TOKENS = 64
"""The most tokens of one scan: the lanes of a wavefront on gfx942."""


def order_slots(
    experts_MS: Tensor,
    cu_seqlens: Tensor,
    block_counts_BE: Tensor,
    part_sizes: Tensor,
    part_loads: Tensor,
    part_sums: Tensor,
    sizes: dict[str, Any],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gives (order_P, counts_E, offsets_E1, probs_mean_E, aux_loss, slope_XE, 1 / counted tokens).

    `block_counts` says how many slots of each block of tokens go to each expert; the three sums, of
    counted tokens alone, are by part of a document or, if the loss is over all tokens, by block.
    """
    num_blocks, num_experts = block_counts_BE.shape

    def empty_fp32(*shape: int) -> Tensor:
        return part_sums.new_empty(shape)

    order_P = experts_MS.new_empty(experts_MS.numel())
    counts_E, offsets_E1 = (experts_MS.new_empty(num_experts + i) for i in range(2))
    probs_mean_E, aux_loss, inverse_count_1 = empty_fp32(num_experts), empty_fp32(), empty_fp32(1)
    slope_XE = empty_fp32(sizes["num_documents"] if sizes["BY_DOCUMENT"] else 1, num_experts)
    tile = device_of(experts_MS).tile(_TILES)
    block_rows = rows_per_tile(tile, sizes["BLOCK_EXPERTS"])
    launch(
        _order_kernel,
        (num_blocks + 1,),
        tile.num_warps,
        experts_ptr=experts_MS,
        cu_seqlens_ptr=cu_seqlens,
        block_counts_ptr=block_counts_BE,
        part_sizes_ptr=part_sizes,
        part_loads_ptr=part_loads,
        part_sums_ptr=part_sums,
        order_ptr=order_P,
        counts_ptr=counts_E,
        offsets_ptr=offsets_E1,
        probs_mean_ptr=probs_mean_E,
        aux_loss_ptr=aux_loss,
        slope_ptr=slope_XE,
        inverse_count_ptr=inverse_count_1,
        num_blocks=num_blocks,
        BLOCK_TOKENS=min(block_rows, _MOST_TOKENS),
        BLOCK_ROWS=block_rows,
        BLOCK_PARTS=1 << block_rows.bit_length() // 2,
        **sizes,
    )
    return order_P, counts_E, offsets_E1, probs_mean_E, aux_loss, slope_XE, inverse_count_1


@triton.jit(do_not_specialize=["num_tokens", "block_tokens", "num_documents", "num_blocks"])
def _order_kernel(
    experts_ptr,
    cu_seqlens_ptr,
    block_counts_ptr,
    part_sizes_ptr,
    part_loads_ptr,
    part_sums_ptr,
    order_ptr,
    counts_ptr,
    offsets_ptr,
    probs_mean_ptr,
    aux_loss_ptr,
    slope_ptr,
    inverse_count_ptr,
    num_tokens,
    block_tokens,
    num_documents,
    num_blocks,
    NUM_EXPERTS: tl.constexpr,
    NUM_SLOTS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    BLOCK_EXPERTS: tl.constexpr,
    BY_DOCUMENT: tl.constexpr,
):
    """Puts each block's slots after those of lower experts and, within an expert, of earlier
    blocks. One more program writes the counts and adds up the loss."""
    program = tl.program_id(0)
    experts = tl.arange(0, BLOCK_EXPERTS)
    is_expert = experts < NUM_EXPERTS
    counts = tl.zeros((BLOCK_ROWS, BLOCK_EXPERTS), tl.int32)
    before = tl.zeros((BLOCK_ROWS, BLOCK_EXPERTS), tl.int32)
    for first in range(0, num_blocks, BLOCK_ROWS):
        blocks = first + tl.arange(0, BLOCK_ROWS)[:, None]
        mask = (blocks < num_blocks) & is_expert[None, :]
        found = tl.load(block_counts_ptr + blocks * NUM_EXPERTS + experts[None, :], mask, other=0)
        counts += found
        before += tl.where(blocks < program, found, 0)
    count = tl.sum(counts, axis=0)
    stop = tl.cumsum(count, axis=0)
    if program == num_blocks:
        tl.store(counts_ptr + experts, count, is_expert)
        tl.store(offsets_ptr, 0)
        tl.store(offsets_ptr + 1 + experts, stop, is_expert)
        if BY_DOCUMENT:
            _add_up_documents(
                cu_seqlens_ptr, part_sizes_ptr, part_loads_ptr, part_sums_ptr, probs_mean_ptr,
                aux_loss_ptr, slope_ptr, inverse_count_ptr, block_tokens, num_documents,
                NUM_EXPERTS, NUM_SLOTS, BLOCK_ROWS // BLOCK_PARTS, BLOCK_PARTS, BLOCK_EXPERTS,
            )  # fmt: skip
        else:
            _add_up_blocks(
                part_sizes_ptr, part_loads_ptr, part_sums_ptr, probs_mean_ptr, aux_loss_ptr,
                slope_ptr, inverse_count_ptr, num_blocks, NUM_EXPERTS, BLOCK_ROWS, BLOCK_EXPERTS,
            )  # fmt: skip
        return

    position = stop - count + tl.sum(before, axis=0)
    begin = program * block_tokens
    end = tl.minimum(begin + block_tokens, num_tokens)
    for first in range(begin, end, BLOCK_TOKENS):
        rows = first + tl.arange(0, BLOCK_TOKENS)
        in_range = rows < end
        is_chosen = tl.zeros((BLOCK_TOKENS, BLOCK_EXPERTS), tl.int32)
        for slot in tl.static_range(NUM_SLOTS):
            expert = tl.load(experts_ptr + rows * NUM_SLOTS + slot, in_range, other=-1)
            is_chosen += (expert[:, None] == experts[None, :]).to(tl.int32)
        places = position[None, :] + tl.cumsum(is_chosen, axis=0) - is_chosen
        for slot in tl.static_range(NUM_SLOTS):
            expert = tl.load(experts_ptr + rows * NUM_SLOTS + slot, in_range, other=-1)
            place = tl.sum(tl.where(expert[:, None] == experts[None, :], places, 0), axis=1)
            tl.store(order_ptr + place, rows * NUM_SLOTS + slot, in_range)
        position += tl.sum(is_chosen, axis=0)


@triton.jit
def _store_mean(sums, size, probs_mean_ptr, inverse_count_ptr, experts, is_expert):
    """Gives (the mean of p, the number of counted tokens) and writes them."""
    num_counted = tl.maximum(size, 1).to(tl.float32)
    mean = tl.div_rn(sums, num_counted + tl.zeros_like(sums))
    tl.store(inverse_count_ptr, tl.div_rn(1.0, num_counted))
    tl.store(probs_mean_ptr + experts, mean, is_expert)
    return mean, num_counted


@triton.jit
def _add_up_blocks(
    part_sizes_ptr,
    part_loads_ptr,
    part_sums_ptr,
    probs_mean_ptr,
    aux_loss_ptr,
    slope_ptr,
    inverse_count_ptr,
    num_blocks,
    NUM_EXPERTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_EXPERTS: tl.constexpr,
):
    experts = tl.arange(0, BLOCK_EXPERTS)
    is_expert = experts < NUM_EXPERTS
    loads = tl.zeros((BLOCK_ROWS, BLOCK_EXPERTS), tl.int32)
    sums = tl.zeros((BLOCK_ROWS, BLOCK_EXPERTS), tl.float32)
    sizes = tl.zeros((BLOCK_ROWS,), tl.int32)
    for first in range(0, num_blocks, BLOCK_ROWS):
        blocks = first + tl.arange(0, BLOCK_ROWS)
        mask = (blocks < num_blocks)[:, None] & is_expert[None, :]
        offsets = blocks[:, None] * NUM_EXPERTS + experts[None, :]
        sizes += tl.load(part_sizes_ptr + blocks, blocks < num_blocks, other=0)
        loads += tl.load(part_loads_ptr + offsets, mask, other=0)
        sums += tl.load(part_sums_ptr + offsets, mask, other=0.0)
    mean, num_counted = _store_mean(
        tl.sum(sums, axis=0), tl.sum(sizes, axis=0), probs_mean_ptr, inverse_count_ptr, experts,
        is_expert,
    )  # fmt: skip
    share = tl.sum(loads, axis=0).to(tl.float32) * (NUM_EXPERTS / num_counted)
    tl.store(slope_ptr + experts, share / num_counted, is_expert)
    tl.store(aux_loss_ptr, tl.sum(share * mean, axis=0))


@triton.jit
def _rows_of(cu_seqlens_ptr, documents, num_documents, block_tokens):
    """Gives the first part of each document (see moe_routing.py) and the row after its last."""
    is_document = documents < num_documents
    start = tl.load(cu_seqlens_ptr + documents, is_document, other=0)
    stop = tl.load(cu_seqlens_ptr + documents + 1, is_document, other=0)
    first = start // block_tokens + documents
    last = (stop - 1) // block_tokens + documents
    return first, tl.where(stop > start, last + 1, first)


@triton.jit
def _add_up_documents(
    cu_seqlens_ptr,
    part_sizes_ptr,
    part_loads_ptr,
    part_sums_ptr,
    probs_mean_ptr,
    aux_loss_ptr,
    slope_ptr,
    inverse_count_ptr,
    block_tokens,
    num_documents,
    NUM_EXPERTS: tl.constexpr,
    NUM_SLOTS: tl.constexpr,
    BLOCK_DOCUMENTS: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    BLOCK_EXPERTS: tl.constexpr,
):
    """Adds up each document's parts, several documents and parts at a time: first the sizes, since
    the mean is over documents that have counted tokens."""
    experts = tl.arange(0, BLOCK_EXPERTS)
    is_expert = experts < NUM_EXPERTS
    wide: tl.constexpr = BLOCK_DOCUMENTS * BLOCK_EXPERTS
    filled = tl.zeros((wide,), tl.int32)
    for begin in range(0, num_documents, wide):
        documents = begin + tl.arange(0, wide)
        first, end = _rows_of(cu_seqlens_ptr, documents, num_documents, block_tokens)
        sizes = tl.zeros((wide, BLOCK_PARTS), tl.int32)
        for step in range(0, tl.max(end - first, axis=0), BLOCK_PARTS):
            parts = first[:, None] + step + tl.arange(0, BLOCK_PARTS)[None, :]
            sizes += tl.load(part_sizes_ptr + parts, parts < end[:, None], other=0)
        filled += (tl.sum(sizes, axis=1) > 0).to(tl.int32)
    num_filled = tl.maximum(tl.sum(filled, axis=0), 1).to(tl.float32)

    total_size = tl.zeros((BLOCK_DOCUMENTS,), tl.int32)
    total = tl.zeros((BLOCK_DOCUMENTS, BLOCK_EXPERTS), tl.float32)
    loss = tl.zeros((BLOCK_DOCUMENTS, BLOCK_EXPERTS), tl.float32)
    for begin in range(0, num_documents, BLOCK_DOCUMENTS):
        documents = begin + tl.arange(0, BLOCK_DOCUMENTS)
        first, end = _rows_of(cu_seqlens_ptr, documents, num_documents, block_tokens)
        sizes = tl.zeros((BLOCK_DOCUMENTS, BLOCK_PARTS), tl.int32)
        loads = tl.zeros((BLOCK_DOCUMENTS, BLOCK_PARTS, BLOCK_EXPERTS), tl.int32)
        sums = tl.zeros((BLOCK_DOCUMENTS, BLOCK_PARTS, BLOCK_EXPERTS), tl.float32)
        for step in range(0, tl.max(end - first, axis=0), BLOCK_PARTS):
            parts = first[:, None] + step + tl.arange(0, BLOCK_PARTS)[None, :]
            is_part = parts < end[:, None]
            offsets = parts[:, :, None] * NUM_EXPERTS + experts[None, None, :]
            mask = is_part[:, :, None] & is_expert[None, None, :]
            sizes += tl.load(part_sizes_ptr + parts, is_part, other=0)
            loads += tl.load(part_loads_ptr + offsets, mask, other=0)
            sums += tl.load(part_sums_ptr + offsets, mask, other=0.0)
        size, of_document = tl.sum(sizes, axis=1), tl.sum(sums, axis=1)
        inverse = tl.div_rn(1.0, tl.maximum(size, 1).to(tl.float32))[:, None]
        slope = tl.sum(loads, axis=1).to(tl.float32) * inverse * inverse
        slope *= NUM_EXPERTS / NUM_SLOTS / num_filled
        tl.store(
            slope_ptr + documents[:, None] * NUM_EXPERTS + experts[None, :],
            slope,
            (documents < num_documents)[:, None] & is_expert[None, :],
        )
        total_size += size
        total += of_document
        loss += slope * of_document
    _store_mean(
        tl.sum(total, axis=0), tl.sum(total_size, axis=0), probs_mean_ptr, inverse_count_ptr,
        experts, is_expert,
    )  # fmt: skip
    tl.store(aux_loss_ptr, tl.sum(tl.sum(loss, axis=0), axis=0))

"""Computes the second launch of MoE routing: slots in order by expert, and the loss from partial
sums."""

# Pyright reads a Triton function as the Python it is not.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOptionalMemberAccess=false
# pyright: reportOperatorIssue=false, reportIndexIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .launch import launch


def order_slots(
    experts_MS: Tensor,
    block_counts_BE: Tensor,
    part_sizes: Tensor,
    part_loads: Tensor,
    part_sums: Tensor,
    num_warps: int,
    sizes: dict[str, Any],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gives (order_P, counts_E, offsets_E1, probs_mean_E, aux_loss, slope_XE, 1 / counted tokens).

    `block_counts` says how many slots of each block of tokens go to each expert; the three sums, of
    counted tokens alone, are by document or, if the loss is over all tokens, by block.
    """
    num_blocks, num_experts = block_counts_BE.shape
    num_parts = len(part_sizes)

    def empty_fp32(*shape: int) -> Tensor:
        return part_sums.new_empty(shape)

    order_P = experts_MS.new_empty(experts_MS.numel())
    counts_E, offsets_E1 = (experts_MS.new_empty(num_experts + i) for i in range(2))
    probs_mean_E, aux_loss, inverse_count_1 = empty_fp32(num_experts), empty_fp32(), empty_fp32(1)
    slope_XE = empty_fp32(num_parts if sizes["BY_DOCUMENT"] else 1, num_experts)
    launch(
        _order_kernel,
        (num_blocks,),
        num_warps,
        experts_ptr=experts_MS,
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
        num_parts=num_parts,
        **sizes,
    )
    return order_P, counts_E, offsets_E1, probs_mean_E, aux_loss, slope_XE, inverse_count_1


@triton.jit(do_not_specialize=["num_tokens", "block_tokens", "num_parts"])
def _order_kernel(
    experts_ptr,
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
    num_parts,
    NUM_EXPERTS: tl.constexpr,
    NUM_SLOTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_EXPERTS: tl.constexpr,
    BY_DOCUMENT: tl.constexpr,
):
    """Puts each block's slots after those of lower experts and, within an expert, of earlier
    blocks. The first program also adds up the loss."""
    program = tl.program_id(0)
    experts = tl.arange(0, BLOCK_EXPERTS)
    is_expert = experts < NUM_EXPERTS
    counts = tl.zeros((BLOCK_ROWS, BLOCK_EXPERTS), tl.int32)
    before = tl.zeros((BLOCK_ROWS, BLOCK_EXPERTS), tl.int32)
    for first in range(0, tl.num_programs(0), BLOCK_ROWS):
        blocks = first + tl.arange(0, BLOCK_ROWS)[:, None]
        mask = (blocks < tl.num_programs(0)) & is_expert[None, :]
        found = tl.load(block_counts_ptr + blocks * NUM_EXPERTS + experts[None, :], mask, other=0)
        counts += found
        before += tl.where(blocks < program, found, 0)
    count = tl.sum(counts, axis=0)
    stop = tl.cumsum(count, axis=0)
    position = stop - count + tl.sum(before, axis=0)

    begin = program * block_tokens
    end = tl.minimum(begin + block_tokens, num_tokens)
    for first in range(begin, end, BLOCK_ROWS):
        rows = (first + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
        in_range = rows < end
        is_chosen = tl.zeros((BLOCK_ROWS, BLOCK_EXPERTS), tl.int32)
        for slot in tl.static_range(NUM_SLOTS):
            expert = tl.load(experts_ptr + rows * NUM_SLOTS + slot, in_range, other=-1)
            is_chosen += (expert[:, None] == experts[None, :]).to(tl.int32)
        places = position[None, :] + tl.cumsum(is_chosen, axis=0) - is_chosen
        for slot in tl.static_range(NUM_SLOTS):
            expert = tl.load(experts_ptr + rows * NUM_SLOTS + slot, in_range, other=-1)
            place = tl.sum(tl.where(expert[:, None] == experts[None, :], places, 0), axis=1)
            tl.store(order_ptr + place, (rows * NUM_SLOTS + slot).to(tl.int32), in_range)
        position += tl.sum(is_chosen, axis=0)

    if program == 0:
        tl.store(counts_ptr + experts, count, is_expert)
        tl.store(offsets_ptr, 0)
        tl.store(offsets_ptr + 1 + experts, stop, is_expert)
        _add_up_loss(
            part_sizes_ptr, part_loads_ptr, part_sums_ptr, probs_mean_ptr, aux_loss_ptr, slope_ptr,
            inverse_count_ptr, num_parts, NUM_EXPERTS, NUM_SLOTS, BLOCK_ROWS, BLOCK_EXPERTS,
            BY_DOCUMENT,
        )  # fmt: skip


@triton.jit
def _add_up_loss(
    part_sizes_ptr,
    part_loads_ptr,
    part_sums_ptr,
    probs_mean_ptr,
    aux_loss_ptr,
    slope_ptr,
    inverse_count_ptr,
    num_parts,
    NUM_EXPERTS: tl.constexpr,
    NUM_SLOTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_EXPERTS: tl.constexpr,
    BY_DOCUMENT: tl.constexpr,
):
    experts = tl.arange(0, BLOCK_EXPERTS)
    is_expert = experts < NUM_EXPERTS
    loads = tl.zeros((BLOCK_ROWS, BLOCK_EXPERTS), tl.int32)
    sums = tl.zeros((BLOCK_ROWS, BLOCK_EXPERTS), tl.float32)
    sizes = tl.zeros((BLOCK_ROWS,), tl.int32)
    filled = tl.zeros((BLOCK_ROWS,), tl.int32)
    for first in range(0, num_parts, BLOCK_ROWS):
        parts = first + tl.arange(0, BLOCK_ROWS)
        mask = (parts < num_parts)[:, None] & is_expert[None, :]
        offsets = parts[:, None] * NUM_EXPERTS + experts[None, :]
        size = tl.load(part_sizes_ptr + parts, parts < num_parts, other=0)
        sizes += size
        filled += (size > 0).to(tl.int32)
        loads += tl.load(part_loads_ptr + offsets, mask, other=0)
        sums += tl.load(part_sums_ptr + offsets, mask, other=0.0)
    num_counted = tl.maximum(tl.sum(sizes, axis=0), 1).to(tl.float32)
    sum_of_probs = tl.sum(sums, axis=0)
    tl.store(inverse_count_ptr, tl.div_rn(1.0, num_counted))
    mean = tl.div_rn(sum_of_probs, num_counted + tl.zeros_like(sum_of_probs))
    tl.store(probs_mean_ptr + experts, mean, is_expert)
    if BY_DOCUMENT:
        num_filled = tl.maximum(tl.sum(filled, axis=0), 1).to(tl.float32)
        loss = tl.zeros((BLOCK_ROWS, BLOCK_EXPERTS), tl.float32)
        for first in range(0, num_parts, BLOCK_ROWS):
            parts = first + tl.arange(0, BLOCK_ROWS)
            mask = (parts < num_parts)[:, None] & is_expert[None, :]
            offsets = parts[:, None] * NUM_EXPERTS + experts[None, :]
            size = tl.load(part_sizes_ptr + parts, parts < num_parts, other=1)
            inverse = tl.div_rn(1.0, tl.maximum(size, 1).to(tl.float32))[:, None]
            load = tl.load(part_loads_ptr + offsets, mask, other=0).to(tl.float32)
            slope = load * inverse * inverse * (NUM_EXPERTS / NUM_SLOTS / num_filled)
            tl.store(slope_ptr + offsets, slope, mask)
            loss += slope * tl.load(part_sums_ptr + offsets, mask, other=0.0)
        tl.store(aux_loss_ptr, tl.sum(tl.sum(loss, axis=0), axis=0))
    else:
        share = tl.sum(loads, axis=0).to(tl.float32) * (NUM_EXPERTS / num_counted)
        tl.store(slope_ptr + experts, share / num_counted, is_expert)
        tl.store(aux_loss_ptr, tl.sum(share * mean, axis=0))

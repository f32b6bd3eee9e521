"""Computes RMSNorm and residual add + RMSNorm: one pass forward, one pass and a small sum
backward."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .column_sum import column_sum
from .config import Tile, Tiles
from .launch import block, cdiv, device_of, launch, rows_per_tile, unit_stride

_FORWARD_TILES = Tiles("norm_forward", Tile(elements=4096, num_warps=8))
_BACKWARD_TILES = Tiles(
    "norm_backward",
    Tile(elements=2048, num_warps=8, programs=4),
    # The default leaves 8 bytes of one variant on the stack.
    **dict.fromkeys(("sm_86", "sm_89"), Tile(elements=4096, num_warps=8, programs=2)),
)


def rms_norm_forward(
    x_MD: Tensor,
    residual_MD: Tensor | None,
    weight_D: Tensor,
    *,
    eps: float,
    cast_before_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gives (x + residual, its norm, reciprocal root mean square [M, 1] in fp32); without a
    residual, the first is empty."""
    num_rows, width = x_MD.shape
    x_MD = unit_stride(x_MD)
    residual_MD = None if residual_MD is None else unit_stride(residual_MD)
    y_MD = x_MD.new_empty((num_rows, width))
    total_MD = x_MD.new_empty(0) if residual_MD is None else torch.empty_like(y_MD)
    rstd_M1 = x_MD.new_empty((num_rows, 1), dtype=torch.float32)
    tile = device_of(x_MD).tile(_FORWARD_TILES)
    block_rows = rows_per_tile(tile, block(width))
    launch(
        _forward_kernel,
        (cdiv(num_rows, block_rows),),
        tile.num_warps,
        x_ptr=x_MD,
        residual_ptr=x_MD if residual_MD is None else residual_MD,
        weight_ptr=weight_D.contiguous(),
        total_ptr=total_MD,
        y_ptr=y_MD,
        rstd_ptr=rstd_M1,
        num_rows=num_rows,
        x_stride=x_MD.stride(0),
        residual_stride=0 if residual_MD is None else residual_MD.stride(0),
        eps=eps,
        WIDTH=width,
        BLOCK_ROWS=block_rows,
        BLOCK_WIDTH=block(width),
        HAS_RESIDUAL=residual_MD is not None,
        CAST_BEFORE_WEIGHT=cast_before_weight,
    )
    return total_MD, y_MD, rstd_M1


def rms_norm_backward(
    grad_y_MD: Tensor,
    grad_total_MD: Tensor | None,
    x_MD: Tensor,
    rstd_M1: Tensor,
    weight_D: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gives the gradients of the sum x (and so of the residual) and of the weight."""
    num_rows, width = x_MD.shape
    grad_y_MD, x_MD = unit_stride(grad_y_MD), unit_stride(x_MD)
    grad_total_MD = None if grad_total_MD is None else unit_stride(grad_total_MD)
    grad_x_MD = x_MD.new_empty((num_rows, width))
    device = device_of(x_MD)
    tile = device.tile(_BACKWARD_TILES)
    block_rows = rows_per_tile(tile, block(width))
    num_tiles = cdiv(num_rows, block_rows)
    num_programs = max(min(device.num_multiprocessors * tile.programs, num_tiles), 1)
    partial_PD = x_MD.new_empty((num_programs, width), dtype=torch.float32)
    launch(
        _backward_kernel,
        (num_programs,),
        tile.num_warps,
        grad_y_ptr=grad_y_MD,
        grad_total_ptr=grad_y_MD if grad_total_MD is None else grad_total_MD,
        x_ptr=x_MD,
        rstd_ptr=rstd_M1,
        weight_ptr=weight_D.contiguous(),
        grad_x_ptr=grad_x_MD,
        partial_ptr=partial_PD,
        num_rows=num_rows,
        grad_y_stride=grad_y_MD.stride(0),
        grad_total_stride=0 if grad_total_MD is None else grad_total_MD.stride(0),
        x_stride=x_MD.stride(0),
        WIDTH=width,
        BLOCK_ROWS=block_rows,
        BLOCK_WIDTH=block(width),
        HAS_GRAD_TOTAL=grad_total_MD is not None,
    )
    return grad_x_MD, column_sum(partial_PD, weight_D.dtype)


@triton.jit(do_not_specialize=["num_rows"])
def _forward_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    total_ptr,
    y_ptr,
    rstd_ptr,
    num_rows,
    x_stride,
    residual_stride,
    eps,
    WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    CAST_BEFORE_WEIGHT: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.arange(0, BLOCK_WIDTH)
    in_row = columns < WIDTH
    mask = (rows < num_rows)[:, None] & in_row[None, :]
    out_offsets = rows[:, None] * WIDTH + columns[None, :]

    x = tl.load(x_ptr + rows[:, None] * x_stride + columns[None, :], mask, other=0.0)
    x = x.to(tl.float32)
    if HAS_RESIDUAL:
        residual = tl.load(
            residual_ptr + rows[:, None] * residual_stride + columns[None, :], mask, other=0.0
        )
        # The norm is of the sum that the next layer reads, rounding included.
        total = (x + residual.to(tl.float32)).to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + out_offsets, total, mask)
        x = total.to(tl.float32)
    weight = tl.load(weight_ptr + columns, in_row, other=0.0).to(tl.float32)

    rstd = tl.rsqrt(tl.sum(x * x, axis=1) / WIDTH + eps)
    normed = x * rstd[:, None]
    if CAST_BEFORE_WEIGHT:
        normed = normed.to(y_ptr.dtype.element_ty).to(tl.float32)
    tl.store(y_ptr + out_offsets, (normed * weight[None, :]).to(y_ptr.dtype.element_ty), mask)
    tl.store(rstd_ptr + rows, rstd, rows < num_rows)


@triton.jit(do_not_specialize=["num_rows"])
def _backward_kernel(
    grad_y_ptr,
    grad_total_ptr,
    x_ptr,
    rstd_ptr,
    weight_ptr,
    grad_x_ptr,
    partial_ptr,
    num_rows,
    grad_y_stride,
    grad_total_stride,
    x_stride,
    WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    HAS_GRAD_TOTAL: tl.constexpr,
):
    """Computes dx = rstd·(g - n·mean(g·n)) with n = x·rstd, g = dy·w; each program sums dy·n over
    its tiles, in registers, and stores its part of the weight's gradient once."""
    columns = tl.arange(0, BLOCK_WIDTH)
    in_row = columns < WIDTH
    weight = tl.load(weight_ptr + columns, in_row, other=0.0).to(tl.float32)
    grad_weight = tl.zeros((BLOCK_ROWS, BLOCK_WIDTH), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(num_rows, BLOCK_ROWS), tl.num_programs(0)):
        rows = (tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
        mask = (rows < num_rows)[:, None] & in_row[None, :]
        grad_y = tl.load(
            grad_y_ptr + rows[:, None] * grad_y_stride + columns[None, :], mask, other=0.0
        ).to(tl.float32)
        x = tl.load(x_ptr + rows[:, None] * x_stride + columns[None, :], mask, other=0.0)
        rstd = tl.load(rstd_ptr + rows, rows < num_rows, other=0.0)
        if HAS_GRAD_TOTAL:
            grad_total = tl.load(
                grad_total_ptr + rows[:, None] * grad_total_stride + columns[None, :],
                mask,
                other=0.0,
            )
        normed = x.to(tl.float32) * rstd[:, None]
        grad_weight += grad_y * normed
        grad_normed = grad_y * weight[None, :]
        grad_x = rstd[:, None] * grad_normed
        if HAS_GRAD_TOTAL:
            # Loaded before the sum: after the sum's barriers, the load would be a second wait.
            grad_x += grad_total.to(tl.float32)
        projection = tl.sum(grad_normed * normed, axis=1) / WIDTH
        grad_x -= normed * (rstd * projection)[:, None]
        tl.store(
            grad_x_ptr + rows[:, None] * WIDTH + columns[None, :],
            grad_x.to(grad_x_ptr.dtype.element_ty),
            mask,
        )
    tl.store(partial_ptr + tl.program_id(0) * WIDTH + columns, tl.sum(grad_weight, axis=0), in_row)

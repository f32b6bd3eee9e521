"""Computes SwiGLU on the packed product: elementwise, the activation rebuilt in the backward
pass."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .config import Tile, Tiles
from .launch import block, cdiv, device_of, launch, rows_per_tile, unit_stride

_FORWARD_TILES = Tiles("swiglu_forward", Tile(elements=2048, num_warps=4))
_BACKWARD_TILES = Tiles("swiglu_backward", Tile(elements=2048, num_warps=4))
_MAX_BLOCK_COLUMNS = 512


def swiglu_forward(gate_up_M2F: Tensor) -> Tensor:
    """Gives silu(gate)·up [M, F]."""
    gate_up_M2F = unit_stride(gate_up_M2F)
    out_MF = gate_up_M2F.new_empty((gate_up_M2F.shape[0], gate_up_M2F.shape[1] // 2))
    _launch(_forward_kernel, _FORWARD_TILES, gate_up_M2F, out_ptr=out_MF)
    return out_MF


def swiglu_backward(
    grad_out_MF: Tensor, gate_up_M2F: Tensor, *, rebuild: bool
) -> tuple[Tensor, Tensor]:
    """Gives the gradient of gate_up [M, 2F] and, with `rebuild`, the forward's result [M, F]."""
    gate_up_M2F, grad_out_MF = (unit_stride(t) for t in (gate_up_M2F, grad_out_MF))
    grad_M2F = gate_up_M2F.new_empty(gate_up_M2F.shape)
    out_MF = gate_up_M2F.new_empty(grad_out_MF.shape if rebuild else 0)
    _launch(
        _backward_kernel,
        _BACKWARD_TILES,
        gate_up_M2F,
        grad_out_ptr=grad_out_MF,
        grad_ptr=grad_M2F,
        out_ptr=out_MF,
        grad_out_stride=grad_out_MF.stride(0),
        REBUILD=rebuild,
    )
    return grad_M2F, out_MF


def _launch(kernel, tiles: Tiles[Tile], gate_up_M2F: Tensor, **arguments) -> None:
    num_rows, width = gate_up_M2F.shape[0], gate_up_M2F.shape[1] // 2
    tile = device_of(gate_up_M2F).tile(tiles)
    block_columns = min(block(width), _MAX_BLOCK_COLUMNS)
    block_rows = rows_per_tile(tile, block_columns)
    launch(
        kernel,
        (cdiv(num_rows, block_rows), cdiv(width, block_columns)),
        tile.num_warps,
        gate_up_ptr=gate_up_M2F,
        num_rows=num_rows,
        gate_up_stride=gate_up_M2F.stride(0),
        WIDTH=width,
        BLOCK_ROWS=block_rows,
        BLOCK_COLUMNS=block_columns,
        **arguments,
    )


@triton.jit
def _tile(num_rows, WIDTH: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    mask = (rows < num_rows)[:, None] & (columns < WIDTH)[None, :]
    return rows[:, None], columns[None, :], mask


@triton.jit(do_not_specialize=["num_rows"])
def _forward_kernel(
    gate_up_ptr,
    out_ptr,
    num_rows,
    gate_up_stride,
    WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    rows, columns, mask = _tile(num_rows, WIDTH, BLOCK_ROWS, BLOCK_COLUMNS)
    gate_ptr = gate_up_ptr + rows * gate_up_stride + columns
    gate = tl.load(gate_ptr, mask, other=0.0).to(tl.float32)
    up = tl.load(gate_ptr + WIDTH, mask, other=0.0).to(tl.float32)
    out = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out_ptr + rows * WIDTH + columns, out.to(out_ptr.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["num_rows"])
def _backward_kernel(
    gate_up_ptr,
    grad_out_ptr,
    grad_ptr,
    out_ptr,
    num_rows,
    gate_up_stride,
    grad_out_stride,
    WIDTH: tl.constexpr,
    REBUILD: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Computes, with s = sigmoid(gate): d_gate = d·up·s·(1 + gate·(1 - s)), d_up = d·gate·s."""
    rows, columns, mask = _tile(num_rows, WIDTH, BLOCK_ROWS, BLOCK_COLUMNS)
    gate_ptr = gate_up_ptr + rows * gate_up_stride + columns
    gate = tl.load(gate_ptr, mask, other=0.0).to(tl.float32)
    up = tl.load(gate_ptr + WIDTH, mask, other=0.0).to(tl.float32)
    grad = tl.load(grad_out_ptr + rows * grad_out_stride + columns, mask, other=0.0)
    grad = grad.to(tl.float32)
    sigmoid = 1.0 / (1.0 + tl.exp(-gate))
    grad_gate = grad * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))
    grad_up = grad * gate * sigmoid
    grad_gate_ptr = grad_ptr + rows * (2 * WIDTH) + columns
    tl.store(grad_gate_ptr, grad_gate.to(grad_ptr.dtype.element_ty), mask)
    tl.store(grad_gate_ptr + WIDTH, grad_up.to(grad_ptr.dtype.element_ty), mask)
    if REBUILD:
        out = gate * sigmoid * up
        tl.store(out_ptr + rows * WIDTH + columns, out.to(out_ptr.dtype.element_ty), mask)

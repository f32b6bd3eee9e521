"""Holds the functions that the losses' kernels share. One program computes one row of logits. Rows
of up to `SOFTMAX_TILES.elements` logits are read once and stay in registers; longer ones are read
in blocks, once for all softmaxes together and once more for the gradient."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .config import Tile, Tiles
from .launch import block, device_of, launch

SOFTMAX_TILES = Tiles(
    "softmax",
    Tile(elements=8192, num_warps=16),
    # Small, so that small tests have rows of several blocks.
    interpreter=Tile(elements=64, num_warps=1),
)
_ELEMENTS_PER_WARP = 512
_PADDED_TO = 64


def launch_rows(kernel: Any, logits_CV: Tensor, *more_CV: Tensor, **arguments: Any) -> None:
    """Runs a kernel with one program for each row of logits.

    Where the strides of all logits leave room for it, a row is read and written up to a multiple of
    64 logits: the memory between its end and the next row belongs to no other tensor.
    """
    vocab, tile = logits_CV.shape[1], device_of(logits_CV).tile(SOFTMAX_TILES)
    elements = min(tile.elements, block(vocab))
    padded = -(-vocab // _PADDED_TO) * _PADDED_TO
    has_room = all(one.stride(0) >= padded for one in (logits_CV, *more_CV))
    launch(
        kernel,
        (logits_CV.shape[0],),
        min(tile.num_warps, max(elements // _ELEMENTS_PER_WARP, 1)),
        logits_ptr=logits_CV,
        logits_stride=logits_CV.stride(0),
        **arguments,
        VOCAB=vocab,
        WIDTH=padded if has_room else vocab,
        BLOCK=elements,
    )


@triton.jit
def row_weight(label, ignored, VOCAB: tl.constexpr):
    """Gives 0 for an ignored label, 1 for a label in the vocabulary, and NaN for any other. NaN
    shows in the loss, and no memory is read for that label."""
    is_known = (label >= 0) & (label < VOCAB)
    return tl.where(label == ignored, 0.0, tl.where(is_known, 1.0, float("nan")))


@triton.jit
def load_logits(row_ptr, columns, VOCAB: tl.constexpr, WIDTH: tl.constexpr):
    """Loads logits in fp32; beyond the vocabulary they are -inf."""
    logits = tl.load(row_ptr + columns, columns < WIDTH, other=float("-inf")).to(tl.float32)
    if WIDTH > VOCAB:
        logits = tl.where(columns < VOCAB, logits, float("-inf"))
    return logits


@triton.jit
def store_logits(row_ptr, columns, logits, WIDTH: tl.constexpr):
    tl.store(row_ptr + columns, logits.to(row_ptr.dtype.element_ty), columns < WIDTH)


@triton.jit
def lane_columns(row_ptr, BLOCK: tl.constexpr):
    """Gives the columns of a block as lanes × the logits of one 16-byte load: one thread holds all
    logits of a lane, so that a lane's maximum needs neither a barrier nor further exponentials."""
    vector: tl.constexpr = 128 // row_ptr.dtype.element_ty.primitive_bitwidth
    lanes = tl.arange(0, BLOCK // vector)
    return lanes[:, None] * vector + tl.arange(0, vector)[None, :]


@triton.jit
def new_lanes(row_ptr, BLOCK: tl.constexpr):
    """Gives the maxima and sums with which lanes begin. The maxima are about the lowest finite
    number, not -inf, since exp(-inf - -inf) is NaN."""
    num_lanes: tl.constexpr = BLOCK * row_ptr.dtype.element_ty.primitive_bitwidth // 128
    return tl.full((num_lanes,), -3.4e38, tl.float32), tl.zeros((num_lanes,), tl.float32)


@triton.jit
def add_block(maxima, sums, logits, scale):
    """Adds a block to the lanes' maxima and sums of exp((z - maximum) · scale), and gives both."""
    higher = tl.maximum(maxima, tl.max(logits, axis=1))
    added = tl.sum(tl.exp((logits - higher[:, None]) * scale), axis=1)
    return higher, sums * tl.exp((maxima - higher) * scale) + added


@triton.jit
def join_lanes(maxima, sums, scale):
    """Gives the row's maximum m and Σ exp((z - m) · scale)."""
    row_max = tl.max(maxima, axis=0)
    return row_max, tl.sum(sums * tl.exp((maxima - row_max) * scale), axis=0)

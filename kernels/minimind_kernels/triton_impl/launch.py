"""Launches every kernel, so that one place can watch all launches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from . import config

Watcher = Callable[[Any, tuple[int, ...], int, dict[str, Any]], None]

_watcher: Watcher | None = None
_device: config.Device | None = None


def launch(kernel: Any, grid: tuple[int, ...], num_warps: int, **arguments: Any) -> None:
    """Runs `kernel` over `grid`; does nothing where the grid is empty."""
    if 0 in grid:
        return
    if _watcher is not None:
        _watcher(kernel, grid, num_warps, arguments)
        return
    kernel[grid](**arguments, num_warps=num_warps)


def device_of(tensor: torch.Tensor) -> config.Device:
    return _device or config.device_of(tensor.device)


def cdiv(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)


def block(width: int) -> int:
    """Gives the least power of two that is not below `width`."""
    return 1 << (max(width, 1) - 1).bit_length()


def rows_per_tile(tile: config.Tile, block_width: int) -> int:
    return max(tile.elements // block_width, 1)


def unit_stride(x: torch.Tensor) -> torch.Tensor:
    """Gives x, copied only where its last dimension is not contiguous."""
    return x if x.stride(-1) == 1 else x.contiguous()


@contextlib.contextmanager
def watch(watcher: Watcher, device: config.Device) -> Iterator[None]:
    """Passes launches to `watcher` instead of a GPU, laid out as for `device`: to compile ahead of
    time, and to count."""
    global _watcher
    _watcher = watcher
    try:
        with laid_out_for(device):
            yield
    finally:
        _watcher = None


@contextlib.contextmanager
def laid_out_for(device: config.Device) -> Iterator[None]:
    """Lays kernels out for `device` inside the block, whichever device the tensors are on: for a
    GPU that is not there, or with a subclass of Device that gives other tiles than the table."""
    global _device
    _device = device
    try:
        yield
    finally:
        _device = None

"""Launches every kernel, so that one place can watch all launches.

Triton's own launch costs the host 13 µs, most of it to find which of a kernel's compiled variants
serves the arguments at hand. `_Variants` finds the variant by the few properties that decide it,
and starts it, in 4 µs.
"""

# No Triton function is here, so all of Pyright's checks are on.
# pyright: basic

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from triton import JITFunction, knobs
from triton.runtime import driver

from . import config

Watcher = Callable[[Any, tuple[int, ...], int, dict[str, Any]], None]

_watcher: Watcher | None = None
_device: config.Device | None = None


def launch(kernel: Any, grid: tuple[int, ...], num_warps: int, **arguments: Any) -> None:
    """Runs `kernel` over `grid`; does nothing where the grid is empty.

    A parameter whose name ends in _ptr takes a tensor. A constexpr takes a hashable value, and all
    other parameters take integers, floats or tuples of integers.
    """
    if 0 in grid:
        return
    if _watcher is not None:
        _watcher(kernel, grid, num_warps, arguments)
        return
    run = _runs.get(kernel.fn)
    if run is None:
        run = _runs[kernel.fn] = _run_of(kernel)
    run(grid, num_warps, arguments)


_runs: dict[Any, Callable[[tuple[int, ...], int, dict[str, Any]], None]] = {}
"""Holds the function that starts each kernel, by its Python function: hashing the kernel itself
would hash its source text."""


def _run_of(kernel: Any) -> Callable[[tuple[int, ...], int, dict[str, Any]], None]:
    # The interpreter has no variants; for ROCm, the size of a tensor's storage makes more of them.
    if isinstance(kernel, JITFunction) and not torch.version.hip:
        return _Variants(kernel).run
    return lambda grid, num_warps, arguments: kernel[grid](**arguments, num_warps=num_warps)


class _Variants:
    """Holds what Triton compiled of one kernel, by all that it compiles anew for: the device, the
    number of warps, the dtypes and alignment of tensors, the values of constexprs and of numbers
    that it specialises, and the width of those that it does not."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self._read = _reader(kernel)
        self._compiled: dict[tuple[Any, ...], Any] = {}

    def run(self, grid: tuple[int, ...], num_warps: int, arguments: dict[str, Any]) -> None:
        gpu: Any = driver.active
        hooks = knobs.runtime
        device = gpu.get_current_device()
        key, values = self._read(device, num_warps, **arguments)
        compiled = self._compiled.get(key)
        # A profiler's hooks expect what Triton tells them.
        if compiled is None or hooks.launch_enter_hook.calls or hooks.launch_exit_hook.calls:
            self._compiled[key] = self._kernel[grid](**arguments, num_warps=num_warps)
            return
        compiled.run(
            *(*grid, 1, 1)[:3], gpu.get_current_stream(device), compiled.function,
            compiled.packed_metadata, None, None, None, *values,
        )  # fmt: skip


def _reader(kernel: Any) -> Callable[..., tuple[tuple[Any, ...], tuple[Any, ...]]]:
    """Makes a function of a launch's device, number of warps and arguments that gives the key of
    its variant, and what to pass to it: addresses for tensors, in the order of parameters.

    Its text is written for this kernel, as Triton writes its own: a loop over the parameters would
    take three times as long.
    """
    addresses, key, values = [], ["device", "num_warps"], []
    for parameter in kernel.params:
        name = value = parameter.name
        if parameter.is_constexpr:
            key.append(f"{name}.__class__, {name}")
        elif name.endswith("_ptr"):
            value = f"{name}_address"
            addresses.append(f"    {value} = {name}.data_ptr()\n")
            key.append(f"{name}.dtype, {value} % 16")
        elif parameter.do_not_specialize:
            key.append(f"{name} >> 31")
        else:
            # All floats share a variant.
            key.append(f"float if {name}.__class__ is float else ({name}.__class__, {name})")
        values.append(value)
    parameters = ", ".join(parameter.name for parameter in kernel.params)
    made: dict[str, Any] = {}
    exec(
        f"def read(device, num_warps, {parameters}):\n{''.join(addresses)}"
        f"    return ({', '.join(key)}), ({', '.join(values)},)\n",
        made,
    )
    return made["read"]


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

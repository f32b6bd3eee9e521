"""Launches every kernel, so that one place can watch all launches.

Triton binds, specialises and looks up every launch in general Python, 13 µs of it. What decides
between its compiled variants is known for our kernels by name and type, so `_Variants` reads that
alone, keeps what Triton compiled, and starts it directly, in 6 µs.
"""

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

    Parameters named `*_ptr` take tensors; the others integers, floats and tuples of them, or what
    a constexpr takes.
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


_Run = Callable[[tuple[int, ...], int, dict[str, Any]], None]
_runs: dict[Any, _Run] = {}


def _run_of(kernel: Any) -> _Run:
    """Gives Triton's own launch for the interpreter, and for ROCm, where tensors are specialised by
    the size of their storage too."""
    if isinstance(kernel, JITFunction) and not torch.version.hip:
        return _Variants(kernel).run
    return lambda grid, num_warps, arguments: kernel[grid](**arguments, num_warps=num_warps)


class _Variants:
    """Holds what Triton has compiled of one kernel, by all that it compiles anew for: the device,
    the number of warps, dtypes and alignment of tensors, values of constexprs and of numbers that
    are specialised, widths of numbers that are not."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self._compiled: dict[tuple[Any, ...], Any] = {}
        self._read = _reader(kernel)

    def run(self, grid: tuple[int, ...], num_warps: int, arguments: dict[str, Any]) -> None:
        gpu = driver.active
        device = gpu.get_current_device()
        key, values = self._read(device, num_warps, **arguments)
        compiled = self._compiled.get(key)
        hooks = knobs.runtime
        if compiled is None or hooks.launch_enter_hook.calls or hooks.launch_exit_hook.calls:
            self._compiled[key] = self._kernel[grid](**arguments, num_warps=num_warps)
            return
        x, y, z = grid if len(grid) == 3 else (*grid, 1, 1)[:3]
        stream = gpu.get_current_stream(device)
        compiled.run(
            x, y, z, stream, compiled.function, compiled.packed_metadata, None, None, None, *values
        )


def _reader(kernel: Any) -> Callable[..., tuple[tuple[Any, ...], tuple[Any, ...]]]:
    """Makes a function of a launch's arguments that gives the key of its variant and what to pass
    to it: addresses for tensors, in the order of the kernel's parameters.

    The function is written out for this kernel, as Triton does it itself: a loop over the
    parameters would take three times as long.
    """
    addresses, keys, values = [], ["device", "num_warps"], []
    for parameter in kernel.params:
        name = value = parameter.name
        if parameter.is_constexpr:
            keys += [f"{name}.__class__", name]
        elif name.endswith("_ptr"):
            value = f"{name}_address"
            addresses.append(f"    {value} = {name}.data_ptr()\n")
            keys += [f"{name}.dtype", f"{value} & 15"]
        elif parameter.do_not_specialize:
            keys.append(f"{name} >> 31")
        else:
            # The variants of a float are one.
            keys.append(f"({name}.__class__, {name}) if {name}.__class__ is not float else float")
        values.append(value)
    names = ", ".join(parameter.name for parameter in kernel.params)
    source = (
        f"def read(device, num_warps, {names}):\n{''.join(addresses)}"
        f"    return ({', '.join(keys)}), ({', '.join(values)},)\n"
    )
    made: dict[str, Any] = {}
    exec(source, made)
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

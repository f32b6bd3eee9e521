"""Tile sizes of every kernel on every architecture: fixed, so that no training run tunes.

`elements` are what one program holds of its largest operand; a kernel divides them by the (padded)
width of a row to get its rows. `programs` are per multiprocessor, for kernels that loop over tiles
and keep a weight's gradient in registers meanwhile.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Tile:
    elements: int
    num_warps: int
    programs: int = 1


@dataclass(frozen=True, slots=True)
class ProductTile:
    """What one program of a matrix product makes, rows × columns, and how deep a step goes."""

    rows: int
    columns: int
    depth: int
    num_warps: int


_DEFAULT = {
    "norm_forward": Tile(elements=4096, num_warps=8),
    "norm_backward": Tile(elements=2048, num_warps=4, programs=4),
    "rope_forward": Tile(elements=2048, num_warps=4),
    "rope_backward": Tile(elements=1024, num_warps=4),
    "norm_rope_backward": Tile(elements=1024, num_warps=4, programs=4),
    "swiglu_forward": Tile(elements=2048, num_warps=4),
    "swiglu_backward": Tile(elements=2048, num_warps=4),
    "moe_routing": Tile(elements=1024, num_warps=4, programs=2),
    "softmax": Tile(elements=2048, num_warps=8),
    "column_sum": Tile(elements=2048, num_warps=4),
}

_PRODUCTS = {
    # Two products side by side, of gate and of up.
    "expert_up": ProductTile(rows=128, columns=64, depth=64, num_warps=8),
    "expert_activation_grad": ProductTile(rows=128, columns=64, depth=64, num_warps=8),
    "expert_to_slots": ProductTile(rows=128, columns=128, depth=64, num_warps=8),
    "expert_weight_grad": ProductTile(rows=128, columns=128, depth=64, num_warps=8),
}
# Exact fp32 products run on the plain units, from registers.
_FP32_PRODUCT = ProductTile(rows=64, columns=32, depth=32, num_warps=4)
# Small, so that small tests have several.
_INTERPRETED_PRODUCT = ProductTile(rows=16, columns=32, depth=16, num_warps=1)

# Where an entry is missing the default holds. None of these has been measured yet.
_BY_ARCH: dict[str, dict[str, Tile]] = {
    "sm_80": {},
    "sm_89": {"norm_backward": Tile(elements=2048, num_warps=4, programs=3)},
    "sm_90": {},
    # Four warps leave 16 bytes of one variant on the stack.
    "sm_100": {"norm_backward": Tile(elements=2048, num_warps=8, programs=2)},
    # 64 lanes to a warp: half as many warps for the same threads.
    "gfx942": {
        name: Tile(tile.elements, max(tile.num_warps // 2, 1), tile.programs)
        for name, tile in _DEFAULT.items()
    },
}

ARCHITECTURES = tuple(_BY_ARCH)


@dataclass(frozen=True, slots=True)
class Device:
    """What a launcher must know of the device."""

    arch: str
    num_multiprocessors: int

    def tile(self, kernel: str) -> Tile:
        return _BY_ARCH.get(self.arch, {}).get(kernel, _DEFAULT[kernel])

    def product_tile(self, kernel: str, dtype: torch.dtype) -> ProductTile:
        if self.arch == "interpreter":
            return _INTERPRETED_PRODUCT
        return _FP32_PRODUCT if dtype == torch.float32 else _PRODUCTS[kernel]


@functools.cache
def device_of(device: torch.device) -> Device:
    """The device's architecture and size; a made-up small one in the interpreter."""
    if device.type != "cuda":
        return Device("interpreter", num_multiprocessors=2)
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        arch = properties.gcnArchName.split(":")[0]
    else:
        arch = f"sm_{properties.major}{properties.minor}"
    return Device(arch, properties.multi_processor_count)

"""Tile sizes of every kernel on every architecture: fixed, so that no training run tunes.

`elements` are what one program holds of its largest operand; a kernel divides them by the (padded)
width of a row to get its rows. `programs` are per multiprocessor, for kernels that loop over tiles
and keep a weight's gradient in registers meanwhile.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True, slots=True)
class Tile:
    elements: int
    num_warps: int
    programs: int = 1


@dataclass(frozen=True, slots=True)
class ProductTile:
    """What one program of a matrix product makes, rows × columns, how deep a step goes, and how
    many are under way at once."""

    rows: int
    columns: int
    depth: int
    num_warps: int
    stages: int


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
    }
    # With half the warps, masks of its many rows go from scalar registers to memory.
    | {"moe_routing": _DEFAULT["moe_routing"]},
}

_PRODUCTS = {
    # Two products side by side, of gate and of up.
    "expert_up": ProductTile(128, 64, 64, num_warps=8, stages=3),
    "expert_activation_grad": ProductTile(128, 64, 64, num_warps=8, stages=3),
    "expert_to_slots": ProductTile(128, 128, 64, num_warps=8, stages=3),
    # A step looks its rows up before it loads them: twice the stages for as many loads.
    "expert_weight_grad": ProductTile(128, 128, 64, num_warps=8, stages=5),
}
# Exact fp32 products run on the plain units, from registers.
_FP32_PRODUCT = ProductTile(64, 32, 32, num_warps=4, stages=2)
# Small, so that small tests have several.
_INTERPRETED_PRODUCT = ProductTile(16, 32, 32, num_warps=1, stages=1)

# With 128 rows, 16 bytes of the activation's gradient lie on the stack.
_SMALL_ACTIVATION = {
    "expert_activation_grad": replace(_PRODUCTS["expert_activation_grad"], rows=64)
}
# None of these has been measured yet either.
_PRODUCTS_BY_ARCH: dict[str, dict[str, ProductTile]] = {
    **dict.fromkeys(("sm_80", "sm_86", "sm_89", "sm_120"), _SMALL_ACTIVATION),
    # 64 KiB of shared memory.
    "gfx942": {
        name: replace(tile, num_warps=tile.num_warps // 2, stages=2)
        for name, tile in _PRODUCTS.items()
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
        if dtype == torch.float32:
            return _FP32_PRODUCT
        return _PRODUCTS_BY_ARCH.get(self.arch, {}).get(kernel, _PRODUCTS[kernel])


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

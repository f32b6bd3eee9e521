"""Holds the tile sizes of each kernel for each architecture. They are fixed, so that no training
run tunes."""

# No Triton function is here, so all of Pyright's checks are on.
# pyright: basic

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch


@dataclass(frozen=True, slots=True)
class Tile:
    """Holds the tile of one program: `elements` of its largest operand, which a kernel divides by
    the (padded) width of a row to get its rows. `programs` are per multiprocessor, for kernels that
    loop over tiles and keep a weight's gradient in registers meanwhile."""

    elements: int
    num_warps: int
    programs: int = 1

    def for_wide_warps(self) -> Tile:
        """Gives the tile for gfx942, which has 64 lanes to a warp: half as many warps for the same
        threads."""
        return replace(self, num_warps=max(self.num_warps // 2, 1))


@dataclass(frozen=True, slots=True)
class ProductTile:
    """Holds the tile of one program of a matrix product: rows × columns, the depth of a step, and
    the number of steps in flight at once."""

    rows: int
    columns: int
    depth: int
    num_warps: int
    stages: int

    def for_wide_warps(self) -> ProductTile:
        """Gives the tile for gfx942, which has 64 KiB of shared memory."""
        return replace(self, num_warps=self.num_warps // 2, stages=2)


AnyTile = TypeVar("AnyTile", Tile, ProductTile)


class Tiles(Generic[AnyTile]):
    """Holds the tile of one kernel, and other tiles for some architectures. No tile has been
    measured yet. A sweep changes one number of a tile at a time; it also tries `candidates`, which
    differ in several."""

    def __init__(
        self,
        name: str,
        default: AnyTile,
        *,
        candidates: tuple[AnyTile, ...] = (),
        **by_arch: AnyTile,
    ) -> None:
        self.name = name
        self.candidates = candidates
        self._default = default
        self._by_arch = {"gfx942": default.for_wide_warps(), **by_arch}

    def on(self, arch: str, dtype: torch.dtype | None = None) -> AnyTile:
        """Gives the tile for operands of `dtype`, which matters to products alone."""
        return self._by_arch.get(arch, self._default)


# Exact fp32 products run on the plain units, from registers.
_FP32_PRODUCT = ProductTile(64, 32, 32, num_warps=4, stages=2)
# With twice the rows, 8 bytes of the experts' first product lie on the stack there.
_FP32_PRODUCTS = {"sm_120": ProductTile(32, 32, 32, num_warps=4, stages=2)}
# Small, so that small tests have several.
_INTERPRETED_PRODUCT = ProductTile(16, 32, 32, num_warps=1, stages=1)


class ProductTiles(Tiles[ProductTile]):
    """Holds the tile of one matrix product in 16 bits; in fp32 all products have the same tile."""

    def on(self, arch: str, dtype: torch.dtype | None = None) -> ProductTile:
        if arch == "interpreter":
            return _INTERPRETED_PRODUCT
        if dtype == torch.float32:
            return _FP32_PRODUCTS.get(arch, _FP32_PRODUCT)
        return super().on(arch)


@dataclass(frozen=True, slots=True)
class Device:
    """Describes the device to a launcher."""

    arch: str
    num_multiprocessors: int

    def tile(self, tiles: Tiles[AnyTile], dtype: torch.dtype | None = None) -> AnyTile:
        return tiles.on(self.arch, dtype)


@functools.cache
def device_of(device: torch.device) -> Device:
    """Gives the device's architecture and size; a made-up small one in the interpreter."""
    if device.type != "cuda":
        return Device("interpreter", num_multiprocessors=2)
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        arch = properties.gcnArchName.split(":")[0]
    else:
        arch = f"sm_{properties.major}{properties.minor}"
    return Device(arch, properties.multi_processor_count)

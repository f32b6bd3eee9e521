"""Describes the GPUs that kernels are compiled for without being there."""

from __future__ import annotations

from typing import NamedTuple

from minimind_kernels.triton_impl import config
from triton.backends.compiler import GPUTarget


class Target(NamedTuple):
    """Holds a GPU as Triton's compiler and a launcher see it, and what its multiprocessor has."""

    gpu: GPUTarget
    device: config.Device
    block_bytes: int
    """The shared memory that one block may take."""
    multiprocessor_bytes: int
    """The shared memory of all its blocks together, of which each costs `reserved_bytes` more."""
    max_warps: int
    max_blocks: int
    reserved_bytes: int = 1024

    def blocks(self, registers: int, shared_bytes: int, num_warps: int) -> int:
        """Gives the number of blocks that one multiprocessor holds at a time; 0 if it cannot hold
        one."""
        if shared_bytes > self.block_bytes:
            return 0
        by_memory = self.multiprocessor_bytes // max(shared_bytes + self.reserved_bytes, 1)
        registers = -(-max(registers, 1) // 8) * 8  # as they are handed out
        if self.gpu.backend == "hip":  # Four units with 512 registers a lane each.
            warps = 4 * min(512 // registers, self.max_warps // 4)
        else:
            warps = min(65536 // (registers * 32) // 4 * 4, self.max_warps)
        return min(warps // num_warps, by_memory, self.max_blocks)


def _nvidia(
    sm: int, multiprocessors: int, kib: int, max_warps: int, max_blocks: int, reserved: int = 1
) -> Target:
    device = config.Device(f"sm_{sm}", multiprocessors)
    return Target(
        GPUTarget("cuda", sm, 32), device, (kib - reserved) << 10, kib << 10, max_warps, max_blocks,
        reserved << 10,
    )  # fmt: skip


# As the CUDA programming guide's table of compute capabilities has them.
TARGETS = {
    "sm_75": _nvidia(75, 40, kib=64, max_warps=32, max_blocks=16, reserved=0),
    "sm_80": _nvidia(80, 108, kib=164, max_warps=64, max_blocks=32),
    "sm_86": _nvidia(86, 82, kib=100, max_warps=48, max_blocks=16),
    "sm_89": _nvidia(89, 128, kib=100, max_warps=48, max_blocks=24),
    "sm_90": _nvidia(90, 132, kib=228, max_warps=64, max_blocks=32),
    "sm_100": _nvidia(100, 148, kib=228, max_warps=64, max_blocks=32),
    "sm_120": _nvidia(120, 170, kib=100, max_warps=48, max_blocks=24),
    "gfx942": Target(
        GPUTarget("hip", "gfx942", 64), config.Device("gfx942", 304), 64 << 10, 64 << 10,
        max_warps=32, max_blocks=32, reserved_bytes=0,
    ),
}  # fmt: skip

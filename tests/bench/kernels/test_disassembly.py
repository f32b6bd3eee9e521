"""bench.kernels.disassembly and targets: what is read of instructions, and what a multiprocessor
holds."""

from __future__ import annotations

import pytest

from bench.kernels.disassembly import _NVIDIA, Structure, _read, read_amdgcn
from bench.kernels.targets import TARGETS

# Two loads together, a third that waits for the first, one barrier; around it an outer loop; the
# end, which branches to itself, is no loop.
SASS = """
_kernel:
        /*0000*/                   S2R R4, SR_CTAID.X ;
        /*0010*/                   LDG.E.U16 R20, desc[UR4][R4.64] ;
.L_x_0:
        /*0020*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
.L_x_1:
        /*0030*/                   LDG.E.128 R8, desc[UR4][R2.64] ;
        /*0040*/                   LDG.E.128 R12, desc[UR4][R2.64+0x10] ;
        /*0050*/                   LDGSTS.E.BYPASS.128 [R18], desc[UR60][R20.64], !P3 ;
        /*0060*/                   LDGDEPBAR ;
        /*0070*/               @P0 LDG.E R16, desc[UR4][R10.64] ;
        /*0080*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0090*/                   HMMA.16816.F32.BF16 R24, R12, R16, R24 ;
        /*00a0*/               @P1 BRA `(.L_x_1) ;
        /*00b0*/               @P2 BRA `(.L_x_0) ;
        /*00c0*/                   EXIT ;
.L_x_2:
        /*00d0*/                   BRA `(.L_x_2);
"""
AMDGCN = """
.LBB0_1:                                ; %.lr.ph
	s_barrier
	global_load_dwordx4 v[8:11], v1, s[2:3]
	global_load_dword v12, v1, s[4:5]
	s_waitcnt vmcnt(0)
	buffer_load_dwordx2 v[14:15], v2, s[4:7], 0 offen
	s_waitcnt vmcnt(0) lgkmcnt(0)
	v_mfma_f32_32x32x8_bf16_1k a[0:15], v[0:1], v[2:3], a[0:15]
	s_cbranch_scc1 .LBB0_1
	s_endpgm
"""


def test_the_innermost_loop_of_sass():
    assert _read(SASS, _NVIDIA) == Structure(1, 2, 128, "HMMA.16816")


def test_without_a_loop_all_of_a_kernel_counts():
    straight = SASS.replace("@P1 BRA `(.L_x_1)", "NOP").replace("@P2 BRA `(.L_x_0)", "NOP")
    assert _read(straight, _NVIDIA) == Structure(2, 2, 128, "HMMA.16816")


def test_the_innermost_loop_of_amdgcn():
    assert read_amdgcn(AMDGCN) == Structure(1, 2, 128, "v_mfma_f32_32x32x8")


@pytest.mark.parametrize(
    ("target", "registers", "shared_bytes", "num_warps", "blocks"),
    [
        ("sm_90", 32, 0, 4, 16),  # the warps
        ("sm_90", 32, 0, 1, 32),  # the blocks
        ("sm_90", 214, 81920, 8, 1),  # the registers
        ("sm_90", 214, 49152, 4, 2),
        ("sm_90", 64, 98816, 4, 2),  # the shared memory
        ("sm_86", 64, 66048, 4, 1),
        ("sm_86", 64, 102400, 4, 0),  # more than a block may take
        ("sm_75", 64, 65536, 4, 1),
        ("gfx942", 128, 32768, 4, 2),
        ("gfx942", 265, 0, 4, 1),
    ],
)
def test_blocks_of_a_multiprocessor(target, registers, shared_bytes, num_warps, blocks):
    assert TARGETS[target].blocks(registers, shared_bytes, num_warps) == blocks

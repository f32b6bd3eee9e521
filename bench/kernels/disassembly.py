"""Reads a compiled kernel's instructions: what its innermost loop waits for, and how it loads and
multiplies."""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import triton

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Structure(NamedTuple):
    """Holds the values read from a kernel's innermost loops that load or multiply; from the whole
    kernel where it has no such loop."""

    barriers: int
    """The most barriers of a block in one pass of a loop."""
    load_groups: int
    """The most groups of loads from global memory in one pass of a loop, where each group waits for
    the one before. Copies into shared memory wait for nothing and are not counted."""
    load_bits: int
    """The widest load of one thread from global memory, anywhere in the kernel; 0 where it has
    none, or loads by descriptors."""
    products: str
    """The matrix instructions, without their types: HGMMA.64x64x16."""


class _Line(NamedTuple):
    """Holds one instruction; a label has only its name."""

    label: str
    opcode: str
    operands: str


class _Reader(NamedTuple):
    """Says how the instructions of one kind of GPU are read."""

    parse: re.Pattern[str]
    """Finds groups named label, opcode and operands."""
    branch: str
    barrier: re.Pattern[str]
    load: re.Pattern[str]
    widths: dict[str, int]
    """The bits of a load by a word in its opcode; 32 without one."""
    product: re.Pattern[str]
    waits: Callable[[_Line, set[str]], bool]
    """Tells whether an instruction waits for loads into these registers."""


def resource_usage(cubin: bytes) -> tuple[int, int]:
    """Gives (registers a thread, spilled bytes) of a kernel for NVIDIA's GPUs."""
    text = _run("cuobjdump", cubin, "-res-usage")
    # Local memory beyond the stack's own few bytes is where spilled registers go.
    registers, stack = (int(re.search(rf"{k}:(\d+)", text)[1]) for k in ("REG", "STACK"))  # type: ignore[index]
    local = re.search(r"LOCAL:(\d+)", text)
    return registers, stack + (int(local[1]) if local else 0)


@functools.cache
def read_cubin(cubin: bytes) -> Structure:
    """Disassembles a kernel for NVIDIA's GPUs, which takes a fifth of a second."""
    return _read(_run("nvdisasm", cubin, "-ndf", "-c"), _NVIDIA)


def read_amdgcn(text: str) -> Structure:
    return _read(text, _AMD)


def _read(text: str, reader: _Reader) -> Structure:
    found = (reader.parse.match(line) for line in text.splitlines())
    lines = [_Line(*(one[name] or "" for name in _Line._fields)) for one in found if one]
    works = re.compile(f"{reader.load.pattern}|{reader.product.pattern}")
    loops = [
        loop
        for loop in _innermost_loops(lines, reader.branch)
        if any(works.match(line.opcode) for line in loop)
    ] or [lines]
    loads = [line.opcode for line in lines if reader.load.match(line.opcode)]
    products = {one[0] for line in lines if (one := reader.product.match(line.opcode))}
    return Structure(
        max(sum(bool(reader.barrier.match(x.opcode)) for x in loop) for loop in loops),
        max(_load_groups(loop, reader) for loop in loops),
        max((_bits(opcode, reader) for opcode in loads), default=0),
        "+".join(sorted(products)),
    )


def _innermost_loops(lines: Sequence[_Line], branch: str) -> Iterator[list[_Line]]:
    """Yields the lines between a label and the last branch back to it, unless another such pair
    lies within."""
    places = {line.label: place for place, line in enumerate(lines) if line.label}
    ends: dict[int, int] = {}
    for place, line in enumerate(lines):
        if re.match(branch, line.opcode):
            target = re.search(r"\.L\w+", line.operands)
            start = places.get(target[0], place) if target else place
            if start < place - 1:  # A kernel for NVIDIA's ends with a branch to itself.
                ends[start] = place
    for start, end in ends.items():
        if not any(start < other and ends[other] < end for other in ends):
            yield list(lines[start : end + 1])


def _load_groups(lines: Sequence[_Line], reader: _Reader) -> int:
    groups, waited_for = 0, set()
    for line in lines:
        if waited_for and reader.waits(line, waited_for):
            waited_for = set()
        if reader.load.match(line.opcode) and not line.operands.startswith("["):
            groups += not waited_for
            first = re.match(r"[Rv]\[?(\d+)", line.operands)
            start = int(first[1]) if first else 0
            waited_for |= {str(start + i) for i in range(max(_bits(line.opcode, reader) // 32, 1))}
    return groups


def _bits(opcode: str, reader: _Reader) -> int:
    words = re.split(r"[._]", opcode)
    return next((bits for word, bits in reader.widths.items() if word in words), 32)


def _reads(line: _Line, registers: set[str]) -> bool:
    """Tells whether one of the registers is among an instruction's sources, or, as an address or a
    value to store, anywhere in it."""
    sources = line.operands if line.opcode.startswith("ST") else line.operands.partition(",")[2]
    return not registers.isdisjoint(re.findall(r"\bR(\d+)", sources))


def _run(tool: str, cubin: bytes, *options: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(_TOOLS / tool), *options, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


_NVIDIA = _Reader(
    parse=re.compile(
        r"^(?P<label>\.L\w+)(?=:)|^\s+/\*\w+\*/\s+(?:@!?U?P\w+\s+)?(?P<opcode>[\w.]+)\s*(?P<operands>[^;]*);"
    ),
    branch="BRA",
    barrier=re.compile(r"BAR\.(SYNC|RED)"),
    load=re.compile(r"LDG(STS)?\."),
    widths={"U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128, "256": 256},
    product=re.compile(r"\w*MMA(\.[\dx]+)?"),
    waits=_reads,
)
_AMD = _Reader(
    parse=re.compile(
        r"^(?P<label>\.LBB\w+)(?=:)|^\s+(?P<opcode>[sv_a-z]\w+)\s*(?P<operands>[^;]*)"
    ),
    branch="s_c?branch",
    barrier=re.compile("s_barrier"),
    load=re.compile("(global|buffer)_load"),
    widths={
        **{"ubyte": 8, "sbyte": 8, "ushort": 16, "sshort": 16, "short": 16},
        **{"dwordx2": 64, "dwordx3": 96, "dwordx4": 128},
    },
    product=re.compile(r"v_mfma_\w+?_\d+x\d+x\d+"),
    waits=lambda line, _: line.opcode == "s_waitcnt" and "vmcnt" in line.operands,
)

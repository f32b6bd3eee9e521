"""Compiles every kernel for real GPUs on a machine without one, and reads the registers and the
memory that it would use.

    python -m bench.kernels --compile-report [--quick] [--targets sm_90] [--ops swiglu]
                            [--update-budget]

Every operation runs forward and backward on tensors without storage; each launch is compiled for
the target instead of being run. So what is compiled is what training would launch. It compiles for
the GPUs of `TARGETS`, at the sizes of the presets, and in 16 bits also at the sizes of other
models.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from minimind_kernels import OPS, backend, op
from minimind_kernels.op import PRESETS, Case, Inputs, Op, Registers, Sizes
from minimind_kernels.triton_impl import config
from minimind_kernels.triton_impl.launch import Watcher, watch
from triton.compiler import ASTSource

from bench.kernels.disassembly import Structure, read_amdgcn, read_cubin, resource_usage
from bench.kernels.targets import TARGETS

_READ_QUICKLY = ("sm_90", "gfx942")
_SPILLS = {"sm_75": 64}
"""The bytes of spilled registers that are put up with at the presets' sizes."""
_BUDGET = re.compile(r'"([\w.]+)": Registers\([\d, ]+\)')

_TYPES = {
    torch.bool: "*i1", torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16",
    torch.int64: "*i64", torch.int32: "*i32", torch.uint8: "*u8",
}  # fmt: skip


_OTHER = Sizes(
    "other", hidden=640, heads=8, kv_heads=2, head_size=64, ffn=1729, qk_norm=True, seq_aux=True,
    vocab=6401, experts=8, experts_per_token=2,
)  # fmt: skip
OTHERS = (
    _OTHER,
    replace(_OTHER, qk_norm=False, cast_before_weight=True, head_size=80, vocab=50257),
    replace(_OTHER, hidden=1152, ffn=3072, head_size=96, experts=64, experts_per_token=8),
    replace(_OTHER, hidden=4096, heads=32, kv_heads=8, head_size=128, ffn=14336, vocab=151936),
    replace(_OTHER, hidden=4096, heads=16, kv_heads=4, head_size=256, qk_norm=False),
)
"""Sizes of other models: vocabularies that are odd or large, rows and heads of other widths."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Holds the resources of one compiled kernel."""

    kernel: str
    target: str
    dtype: str
    registers: int
    shared_bytes: int
    spills: int
    sizes: str = "presets"
    """presets, or others."""
    blocks: int = 1
    """The number of its blocks that a multiprocessor holds at a time."""
    structure: Structure | None = None
    """Describes its instructions; None where they were not read."""


def build_report(
    targets: Sequence[str] | None = None, ops: Sequence[str] | None = None, *, quick: bool
) -> list[Usage]:
    """Compiles all kernels, or those of `ops`, × dtypes × sizes × targets. With `quick` it compiles
    only bf16, two presets and, unless targets are given, the targets with a budget of registers; it
    reads the instructions of two of these."""
    usages: dict[Any, Usage] = {}
    for target in targets or (Registers._fields if quick else TARGETS):
        half = half_dtype(target)
        for dtype in (half,) if quick else (half, torch.float16, torch.float32):
            # The two presets together have every kernel.
            groups = {"presets": PRESETS[2:4] if quick else PRESETS}
            if dtype == half and not quick:
                groups["others"] = OTHERS
            reads = dtype == half and (not quick or target in _READ_QUICKLY)
            for group, all_sizes in groups.items():
                device = TARGETS[target].device
                cases = (case for sizes in all_sizes for case in _cases(target, sizes, dtype))
                found = compile_cases(target, device, dtype, cases, reads=reads, ops=ops)
                for key, usage in found:
                    # A kernel that is the same in all dtypes counts as one of 16 bits.
                    usages.setdefault((*key, group), replace(usage, sizes=group))
    return list(usages.values())


def half_dtype(target: str) -> torch.dtype:
    """Gives the 16 bits that a target trains in."""
    return torch.float16 if target == "sm_75" else torch.bfloat16


def refused(target: str) -> list[Op]:
    """Lists the operations whose Triton form backend.py does not run on a target."""
    sm = TARGETS[target].gpu.arch
    old = isinstance(sm, int) and divmod(sm, 10) < backend._PRODUCTS_FROM
    return [op for op in OPS.values() if old and any(form._has_products for form in op.forms)]


def _cases(target: str, sizes: Sizes, dtype: torch.dtype) -> Iterator[Case]:
    left_out = refused(target)
    for one in OPS.values():
        if one.runs_in(sizes) and one not in left_out:
            yield one.build(Inputs(sizes, 4096, dtype, "meta"))


def check(report: list[Usage], budget: Mapping[str, Registers] | None = None) -> list[str]:
    """Lists the faults: more shared memory than a target has, more registers than the budget allows
    (by default that of each `Op`), no budget at all."""
    budget = read_budget() if budget is None else budget
    problems = []
    for usage in report:
        name = f"{usage.target} {usage.kernel} {usage.dtype} ({usage.sizes})"
        if usage.shared_bytes > (most := TARGETS[usage.target].block_bytes):
            problems.append(f"{name}: {usage.shared_bytes} bytes shared, a block has {most}")
        if usage.spills > (most := _SPILLS.get(usage.target, 0)) and usage.sizes == "presets":
            problems.append(f"{name}: {usage.spills} bytes of spilled registers")
        if usage.kernel not in budget:
            problems.append(f"{name}: no `Op` has a budget of registers for it")
        elif usage.sizes == "presets" and usage.target in Registers._fields:
            allowed = getattr(budget[usage.kernel], usage.target)
            if usage.registers > allowed:
                problems.append(f"{name}: {usage.registers} registers, the budget is {allowed}")
    return list(dict.fromkeys(problems))


def read_budget() -> dict[str, Registers]:
    """Gives the budget of each kernel, as the `Op`s have it."""
    return {name: most for one in OPS.values() for name, most in one.registers.items()}


def write_budget(report: list[Usage]) -> dict[str, Registers]:
    """Writes each kernel's highest registers on each target as its budget, in the file of the
    operation that owns it, and gives the new budget. A kernel that was not compiled for every
    target keeps what it has."""
    budget = read_budget() | _measured_budget(report)
    for path in Path(op.__file__).parent.glob("*.py"):
        before = path.read_text(encoding="utf-8")
        after = _BUDGET.sub(lambda found: _write_line(found, budget), before)
        if after != before:
            path.write_text(after, encoding="utf-8")
    return budget


def _write_line(found: re.Match[str], budget: Mapping[str, Registers]) -> str:
    """Writes a kernel's budget where a line of its operation's file has it. A file that
    `__init__.py` does not import yet keeps its lines."""
    if (most := budget.get(found[1])) is None:
        return found[0]
    return f'"{found[1]}": Registers({", ".join(map(str, most))})'


def _measured_budget(report: list[Usage]) -> dict[str, Registers]:
    """Gives the highest registers of each kernel that was compiled for every target with a
    budget."""
    most: dict[str, dict[str, int]] = {}
    for usage in report:
        if usage.sizes == "presets" and usage.target in Registers._fields:
            of_kernel = most.setdefault(usage.kernel, {})
            of_kernel[usage.target] = max(of_kernel.get(usage.target, 0), usage.registers)
    complete = len(Registers._fields)
    return {kernel: Registers(**row) for kernel, row in most.items() if len(row) == complete}


@contextlib.contextmanager
def launches_to(watcher: Watcher, device: config.Device) -> Iterator[None]:
    """Has operations run their Triton form inside the block, even without storage, and only report
    launches to `watcher`."""
    with watch(watcher, device), mock.patch.object(backend, "use_triton", return_value=True):
        yield


def compile_cases(
    target: str,
    device: config.Device,
    dtype: torch.dtype,
    cases: Iterable[Case],
    *,
    reads: bool = False,
    ops: Sequence[str] | None = None,
) -> Iterator[tuple[Any, Usage]]:
    """Yields the usage of the kernels of `cases`, on the meta device, with the tiles of `device`;
    each kernel once, by a unique key. With `reads` their instructions are read, too. With `ops`
    only the kernels in these operations' budgets are compiled, for every case that launches
    them."""
    only = None if ops is None else {kernel for name in ops for kernel in OPS[name].registers}
    sources: dict[Any, tuple[ASTSource, int, str]] = {}

    def record(
        kernel: Any, grid: tuple[int, ...], num_warps: int, arguments: dict[str, Any]
    ) -> None:
        name = name_kernel(kernel)
        if only is None or name in only:
            source = _source(kernel, arguments)
            sources[target, source.hash(), num_warps] = (source, num_warps, name)

    with launches_to(record, device):
        for case in cases:
            case.run()
    for key, (source, num_warps, name) in sources.items():
        options = {"num_warps": num_warps}
        compiled: Any = triton.compile(source, target=TARGETS[target].gpu, options=options)
        registers, spills, structure = _read(compiled, target, reads=reads)
        shared = compiled.metadata.shared
        usage = Usage(
            name, target, str(dtype).removeprefix("torch."), registers, shared, spills,
            blocks=TARGETS[target].blocks(registers, shared, num_warps),
            structure=structure,
        )  # fmt: skip
        yield (*key, name), usage


def name_kernel(kernel: Any) -> str:
    """Gives a kernel's module and name."""
    module, function = kernel.__module__.rsplit(".", 1)[-1], kernel.__name__.strip("_")
    return f"{module}.{function.removesuffix('_kernel')}"


def _source(kernel: Any, arguments: dict[str, Any]) -> ASTSource:
    """Gives the kernel with the types and the divisibility by 16 that a launch would find."""
    signature: dict[str, Any] = {}
    constants: dict[Any, Any] = {}
    attributes: dict[Any, Any] = {}
    divisible = [["tt.divisibility", 16]]
    for i, parameter in enumerate(kernel.params):
        value, name = arguments[parameter.name], parameter.name
        if parameter.is_constexpr:
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name], attributes[i,] = _TYPES[value.dtype], divisible
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif isinstance(value, tuple):
            signature[name] = tuple("i32" for _ in value)
            attributes |= {(i, j): divisible for j, v in enumerate(value) if v % 16 == 0}
        else:
            signature[name] = "i32"
            if value % 16 == 0 and not parameter.do_not_specialize:
                attributes[i,] = divisible
    return ASTSource(kernel, signature, constants, attributes)


def _read(compiled: Any, target: str, *, reads: bool) -> tuple[int, int, Structure | None]:
    """Gives registers a thread, spills and, with `reads`, the structure of a compiled kernel."""
    if target.startswith("gfx"):
        text = compiled.asm["amdgcn"]
        spills = re.findall(r"\.[sv]gpr_spill_count:\s*(\d+)", text)
        (registers,) = re.findall(r"\.vgpr_count:\s*(\d+)", text)
        return int(registers), sum(map(int, spills)), read_amdgcn(text) if reads else None
    cubin = compiled.asm["cubin"]
    return *resource_usage(cubin), read_cubin(cubin) if reads else None

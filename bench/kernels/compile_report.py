"""Compiles every kernel for real GPUs on a machine without one, and reads what it would use.

    python -m bench.kernels --compile-report [--quick] [--update-budget]

Every operation runs forward and backward on tensors without storage; each launch is compiled for
the target instead of being run. So what is compiled is what training would launch.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from minimind_kernels import OPS, backend, op
from minimind_kernels.op import PRESETS, Case, Registers, build_cases
from minimind_kernels.triton_impl import config
from minimind_kernels.triton_impl.launch import Watcher, watch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGETS = {
    "sm_80": (GPUTarget("cuda", 80, 32), config.Device("sm_80", 108)),
    "sm_89": (GPUTarget("cuda", 89, 32), config.Device("sm_89", 128)),
    "sm_90": (GPUTarget("cuda", 90, 32), config.Device("sm_90", 132)),
    "sm_100": (GPUTarget("cuda", 100, 32), config.Device("sm_100", 148)),
    "gfx942": (GPUTarget("hip", "gfx942", 64), config.Device("gfx942", 304)),
}

_BUDGET = re.compile(r'"([\w.]+)": Registers\([\d, ]+\)')

_TYPES = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16",
    torch.int64: "*i64", torch.int32: "*i32", torch.uint8: "*u8",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Usage:
    """Holds the resources of one compiled kernel."""

    kernel: str
    target: str
    dtype: str
    registers: int
    shared_bytes: int
    spills: int


def build_report(*, quick: bool) -> list[Usage]:
    """Compiles all kernels × dtypes × presets × targets; `quick` takes bf16 and two presets
    alone."""
    usages: dict[Any, Usage] = {}
    for target in TARGETS:
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            if quick and dtype != torch.bfloat16:
                continue
            # Between them the two have every kernel.
            presets = PRESETS[2:4] if quick else PRESETS
            for key, usage in _usages(target, dtype, presets):
                usages[key] = usage
    return list(usages.values())


def check(report: list[Usage]) -> list[str]:
    """Lists the faults: spills, or more registers than an operation's budget allows."""
    budget = {name: most for one in OPS.values() for name, most in one.registers.items()}
    problems = []
    for usage in report:
        name = f"{usage.target} {usage.kernel} {usage.dtype}"
        if usage.spills:
            problems.append(f"{name}: {usage.spills} spills")
        if usage.kernel not in budget:
            problems.append(f"{name}: no `Op` has a budget of registers for it")
        elif usage.registers > (allowed := getattr(budget[usage.kernel], usage.target)):
            problems.append(f"{name}: {usage.registers} registers, the budget is {allowed}")
    return problems


def write_budget(report: list[Usage]) -> None:
    """Writes each kernel's highest registers on each target as its budget, in the file of the
    operation that owns it."""
    for path in Path(op.__file__).parent.glob("*.py"):
        before = path.read_text(encoding="utf-8")
        after = _BUDGET.sub(lambda found: _line(report, found[1], found[0]), before)
        if after != before:
            path.write_text(after, encoding="utf-8")


def _line(report: list[Usage], kernel: str, otherwise: str) -> str:
    """Writes the budget of a kernel as a line of its operation's file."""
    found = {
        target: [u.registers for u in report if (u.kernel, u.target) == (kernel, target)]
        for target in TARGETS
    }
    if not all(found.values()):
        return otherwise
    most = Registers(**{target: max(taken) for target, taken in found.items()})
    return f'"{kernel}": Registers({", ".join(map(str, most))})'


def as_table(report: list[Usage]) -> str:
    """Makes a table of kernel × target: the most registers, shared memory and spills over dtypes
    and sizes."""
    lines = ["| kernel | target | registers | shared bytes | spills |", "|---|---|---|---|---|"]
    for kernel in sorted({u.kernel for u in report}):
        for target in TARGETS:
            found = [u for u in report if (u.kernel, u.target) == (kernel, target)]
            most = [
                max(getattr(u, f) for u in found) for f in ("registers", "shared_bytes", "spills")
            ]
            lines.append(f"| {kernel} | {target} | {most[0]} | {most[1]} | {most[2]} |")
    return "\n".join(lines)


def as_rows(report: list[Usage]) -> list[dict[str, Any]]:
    return [asdict(usage) for usage in report]


@contextlib.contextmanager
def launches_to(watcher: Watcher, device: config.Device) -> Iterator[None]:
    """Has operations run their Triton form inside the block, even without storage, and only report
    launches to `watcher`."""
    with watch(watcher, device), mock.patch.object(backend, "use_triton", return_value=True):
        yield


def run_without_storage(case: Case) -> None:
    """Runs forward and backward on meta tensors."""
    outputs = case.ours(*case.inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    torch.autograd.backward(outputs, [torch.empty_like(o) for o in outputs])


def _usages(
    target: str, dtype: torch.dtype, presets: tuple[Any, ...]
) -> Iterator[tuple[Any, Usage]]:
    cases = (case for sizes in presets for case in build_cases(sizes, 4096, dtype, "meta"))
    return compile_cases(target, TARGETS[target][1], dtype, cases)


def compile_cases(
    target: str, device: config.Device, dtype: torch.dtype, cases: Iterable[Case]
) -> Iterator[tuple[Any, Usage]]:
    """Yields the usage of the kernels of `cases`, on the meta device, with the tiles of `device`;
    each kernel once, by a unique key."""
    gpu = TARGETS[target][0]
    sources: dict[Any, tuple[ASTSource, int, str]] = {}

    def record(
        kernel: Any, grid: tuple[int, ...], num_warps: int, arguments: dict[str, Any]
    ) -> None:
        source = _source(kernel, arguments)
        sources[target, source.hash(), num_warps] = (source, num_warps, name_kernel(kernel))

    with launches_to(record, device):
        for case in cases:
            run_without_storage(case)
    for key, (source, num_warps, name) in sources.items():
        compiled = triton.compile(source, target=gpu, options={"num_warps": num_warps})
        registers, spills = _read(compiled, target)
        dtype_name = str(dtype).removeprefix("torch.")
        yield (
            (*key, name),
            Usage(name, target, dtype_name, registers, compiled.metadata.shared, spills),
        )


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


def _read(compiled: Any, target: str) -> tuple[int, int]:
    """Gives (registers a thread, spills) of a compiled kernel."""
    if target.startswith("gfx"):
        text = compiled.asm["amdgcn"]
        spills = re.findall(r"\.[sv]gpr_spill_count:\s*(\d+)", text)
        (registers,) = re.findall(r"\.vgpr_count:\s*(\d+)", text)
        return int(registers), sum(map(int, spills))
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(tool), "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # Local memory beyond the stack's own few bytes is where spilled registers go.
    registers, stack = (int(re.search(rf"{k}:(\d+)", text)[1]) for k in ("REG", "STACK"))  # type: ignore[index]
    local = re.search(r"LOCAL:(\d+)", text)
    return registers, stack + (int(local[1]) if local else 0)

"""Chooses which form of an operation runs; no other file chooses.

Two settings, read from the environment at the first operation:

`MINIMIND_KERNELS`
    `auto` (default): the Triton body for CUDA and ROCm tensors, PyTorch elsewhere, and on a GPU for
    which Triton cannot make or start a kernel.
    `triton`: the Triton body, or an error that says why there is none.
    `torch`: PyTorch everywhere.

`MINIMIND_COMPILE` (the PyTorch form on the CPU, see form.py)
    `auto` (default): generated C++ for large tensors, plain PyTorch for small ones or where there
    is no C++ compiler. `1`: the same for large tensors, or an error. `0`: never.

The choice depends on the settings and on the tensors' device, dtype and shape alone, never on what
ran before: a resumed run takes the same code, and ends with the same bits.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import shutil
import sysconfig
from pathlib import Path

import torch
from torch import Tensor

logger = logging.getLogger("minimind_kernels")

TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_TRITON_FROM = (7, 5)
"""The oldest compute capability that Triton's bodies run on: CUDA 13's assembler supports no older
one."""
_PRODUCTS_FROM = (8, 0)
"""The oldest compute capability for which Triton compiles products on tensor cores without register
spills."""

_MIN_COMPILED_ROWS = 1024
_MIN_COMPILED_ELEMENTS = 1 << 18
"""The least number of elements for which code is generated. With fewer elements, or fewer rows than
_MIN_COMPILED_ROWS, generated code saves less time than its compilation takes; so decoding, prompts
and unit tests stay in plain PyTorch."""


@functools.cache
def kernels_setting() -> str:
    """Gives the value of MINIMIND_KERNELS. Raises ValueError for an unknown one."""
    return _read("MINIMIND_KERNELS", ("auto", "triton", "torch"))


@functools.cache
def compile_setting() -> str:
    """Gives the value of MINIMIND_COMPILE. Raises ValueError for an unknown one."""
    return _read("MINIMIND_COMPILE", ("auto", "0", "1"))


@functools.cache
def interpreting() -> bool:
    """Tells whether Triton's interpreter runs the bodies, on the CPU and slowly: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def check_settings(device: torch.device) -> None:
    """Checks, when a program starts, whether MINIMIND_KERNELS and MINIMIND_COMPILE can be
    met on `device`.

    Raises ValueError for an unknown value, RuntimeError for a value that this machine cannot
    meet.
    """
    setting, compiling = kernels_setting(), compile_setting()
    if setting == "triton" and (problem := _why_not_triton_on(device)):
        raise RuntimeError(_cannot_be_met(problem))
    if compiling == "1" and device.type == "cpu" and setting != "triton" and not _has_compiler():
        raise RuntimeError(
            "MINIMIND_COMPILE=1, but there is no C++ compiler (CXX, g++ or clang++); install one, "
            "or use MINIMIND_COMPILE=auto or 0"
        )


def use_triton(op: str, first: Tensor, *others: Tensor | None, has_products: bool = False) -> bool:
    """Tells whether `op` runs its Triton body on these tensors; `has_products` says that it
    multiplies matrices.

    Raises RuntimeError under `MINIMIND_KERNELS=triton` where that is impossible.
    """
    setting, tracing = kernels_setting(), torch.compiler.is_compiling()
    device, problem = first.device, None
    if setting != "torch":
        problem = _why_not_triton(op, device, (first, *others), tracing)
    if problem is None and has_products and setting == "auto" and not tracing:
        problem = _why_torch_is_quicker(device)
    if problem is not None and setting == "triton":
        raise RuntimeError(_cannot_be_met(problem))
    use = setting != "torch" and problem is None
    if not tracing:
        _say_once("Triton" if use else "PyTorch", setting, problem)
    return use


def inlines(op: str, *tensors: Tensor) -> bool:
    """Tells whether torch.compile is tracing and should see `op` as plain PyTorch, which it fuses
    with the operators around it; it sees a Triton body as one operator."""
    return torch.compiler.is_compiling() and not use_triton(op, *tensors)


def use_compiled_cpu(rows: int, elements: int) -> bool:
    """Tells whether an operation over `elements` values in `rows` rows runs as generated C++."""
    if rows < _MIN_COMPILED_ROWS or elements < _MIN_COMPILED_ELEMENTS:
        return False
    setting = compile_setting()
    return setting == "1" or (setting == "auto" and _has_compiler())


def _cannot_be_met(problem: str) -> str:
    return f"MINIMIND_KERNELS=triton, but {problem}; use MINIMIND_KERNELS=auto or torch"


def _why_not_triton_on(device: torch.device, tracing: bool = False) -> str | None:
    if device.type != "cuda" and not (kernels_setting() == "triton" and interpreting()):
        # The message does not name the operation, so that it is logged once for all of them.
        return f"the tensors are on the {device.type}, and Triton needs a CUDA or ROCm GPU"
    # torch.compile cannot trace the checks of the machine; its own Triton code has the same needs.
    if device.type != "cuda" or tracing:
        return None if _has_triton() else "Triton is not installed"
    return _why_not_triton_on_gpu(device)


@functools.cache
def _why_not_triton_on_gpu(device: torch.device) -> str | None:
    if not _has_triton():
        return "Triton is not installed"
    if (capability := _capability(device)) and capability < _TRITON_FROM:
        return f"Triton needs sm_75 or newer, and this GPU is sm_{capability[0]}{capability[1]}"
    return _why_no_launcher()


@functools.cache
def _capability(device: torch.device) -> tuple[int, int] | None:
    """Gives the compute capability; None on ROCm, which names its architectures differently."""
    return None if torch.version.hip else torch.cuda.get_device_capability(device)


@functools.cache
def _why_no_launcher() -> str | None:
    """Says what this machine lacks to compile Triton's launchers: Triton compiles a C file for each
    kernel that it starts on a GPU."""
    given = os.environ.get("CC")
    if given is not None and not shutil.which(given):
        return f"CC={given}, which Triton starts a kernel with, is no program: unset or correct it"
    if given is None and not (shutil.which("gcc") or shutil.which("clang")):
        return (
            "Triton needs a C compiler to start a kernel, and there is neither gcc nor clang: "
            "install one (apt install gcc), or name one in CC"
        )
    # Debian's default scheme names a folder without the headers.
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    folder = sysconfig.get_path("include", scheme)
    if (Path(folder) / "Python.h").exists():
        return None
    return (
        f"Triton needs Python's headers to start a kernel, and {folder} has no Python.h: install "
        "them (apt install python3-dev)"
    )


def _why_not_triton(
    op: str, device: torch.device, tensors: tuple[Tensor | None, ...], tracing: bool
) -> str | None:
    if problem := _why_not_triton_on(device, tracing):
        return problem
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.dtype.is_floating_point and tensor.dtype not in TRITON_DTYPES:
            allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in TRITON_DTYPES)
            given = str(tensor.dtype).removeprefix("torch.")
            return f"{op} was given {given}, and its Triton body takes {allowed}"
        if tensor.device != device:
            return f"{op} was given tensors on {device} and on {tensor.device}"
    return None


def _why_torch_is_quicker(device: torch.device) -> str | None:
    """Says why PyTorch is quicker at products of matrices on the GPU `device`; None where it is
    not."""
    capability = _capability(device)
    if capability is None or capability >= _PRODUCTS_FROM:
        return None
    # The message does not name the operation, so that it is logged once for both.
    return "Triton makes the products of experts well from sm_80 on: PyTorch's are quicker here"


def _read(name: str, allowed: tuple[str, ...]) -> str:
    value = os.environ.get(name) or allowed[0]
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not known; use one of {', '.join(allowed)}")
    return value


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _has_compiler() -> bool:
    names = (os.environ.get("CXX"), "g++", "clang++")
    if any(name and shutil.which(name) for name in names):
        return True
    logger.info("no C++ compiler (CXX, g++ or clang++): plain PyTorch on the CPU")
    return False


@functools.cache
def _say_once(choice: str, setting: str, problem: str | None) -> None:
    because = f": {problem}" if problem else ""
    logger.info("kernels    %s (MINIMIND_KERNELS=%s)%s", choice, setting, because)

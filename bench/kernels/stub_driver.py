"""Launches kernels where no GPU is, through Triton's own binder, compiler and launcher, from
tensors in the host's memory: a stub of the CUDA driver (stub_driver.c) counts the launches.

So everything up to the driver is what training runs: which variant of a kernel is chosen for these
strides and addresses, what its arguments are packed to, whether its grid and shared memory are
allowed. What a kernel would write stays as it was.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from minimind_kernels import backend, token_chunks
from minimind_kernels.triton_impl.launch import laid_out_for
from torch import Tensor
from triton import knobs
from triton.backends.nvidia import driver as nvidia
from triton.runtime import driver

from bench.kernels.targets import TARGETS
from minimind.errors import ConfigError
from minimind.runtime.compiler import find_compiler

_SOURCE = Path(__file__).with_name("stub_driver.c")


class _Driver(nvidia.CudaDriver):
    """Answers Triton as a GPU of compute capability `sm` does."""

    def __init__(self, sm: int) -> None:
        self.utils = nvidia.CudaUtils()
        self.launcher_cls = nvidia.CudaLauncher
        # Each architecture is a device of its own: Triton keeps compiled kernels by device.
        self.get_current_device = lambda: sm
        self.get_device_capability = lambda device: divmod(sm, 10)
        self.get_current_stream = lambda device: 0


@contextlib.contextmanager
def stub_gpu(arch: str) -> Iterator[ctypes.c_long]:
    """Has operations launch their Triton form on tensors of the CPU, as on an NVIDIA GPU of `arch`,
    inside the block; yields a counter of launches.

    Use it in a separate process that has used no GPU. Raises ConfigError without a C compiler.
    """
    library, target = _load(), TARGETS[arch]
    _number(library, "stub_block_bytes").value = target.block_bytes
    _number(library, "stub_multiprocessors").value = target.device.num_multiprocessors
    with (
        laid_out_for(target.device),
        mock.patch.object(driver, "_active", _Driver(int(target.gpu.arch))),
        # The replacements are as quick as the originals, since their time is measured.
        mock.patch.object(backend, "kernels_setting", _triton),
        mock.patch.object(backend, "interpreting", _allowing_the_cpu),
        # Nothing is computed, so the memory in which a kernel reports on its input holds old
        # values.
        mock.patch.object(token_chunks, "_check_uniform", _believing),
    ):
        yield ctypes.c_long.in_dll(library, "stub_launches")


def _triton() -> str:
    return "triton"


def _allowing_the_cpu() -> bool:
    return True


def _believing(is_uniform: Tensor) -> None:
    pass


@functools.cache
def _load() -> ctypes.CDLL:
    """Compiles the stub and loads it before any other library of its name."""
    compiler = find_compiler("CC", "gcc", "clang")
    if compiler is None:
        raise ConfigError(
            "launching without a GPU needs a C compiler (CC, gcc or clang), as Triton itself does: "
            "install one"
        )
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "libcuda.so.1"
        include = Path(nvidia.__file__).with_name("include")
        subprocess.run(
            [compiler, "-O1", "-shared", "-fPIC", f"-Wl,-soname,{library.name}", f"-I{include}",
             str(_SOURCE), "-o", str(library)],
            check=True,
        )  # fmt: skip
        loaded = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        knobs.nvidia.libcuda_path = folder
        nvidia.CudaUtils()  # Linked against it while it is there.
    return loaded


def _number(library: ctypes.CDLL, name: str) -> ctypes.c_int:
    return ctypes.c_int.in_dll(library, name)

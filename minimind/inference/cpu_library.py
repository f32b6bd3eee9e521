"""Compiles cpu_decode.cpp with the user's compiler, once, and loads it."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import platform
import subprocess
from pathlib import Path

from minimind_kernels import backend

from minimind.runtime.cache_folder import default_cache_dir
from minimind.runtime.compiled_library import build_library
from minimind.runtime.compiler import find_cpp_compiler

logger = logging.getLogger(__name__)

_SOURCE = Path(__file__).with_name("cpu_decode.cpp")
_HEADERS = (_SOURCE.with_name("cpu_products.h"), _SOURCE.with_name("cpu_vectors.h"))
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-fPIC", "-shared", "-std=c++17")


@functools.cache
def load_library() -> ctypes.CDLL | None:
    """Loads the library, compiled once for this source, compiler and CPU into the cache folder.
    Gives None where that fails; under MINIMIND_COMPILE=1 it raises RuntimeError."""
    try:
        return ctypes.CDLL(str(_build()))
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or error
        if backend.compile_setting() == "1":
            message = f"MINIMIND_COMPILE=1, but {_SOURCE.name} cannot be compiled: {reason}"
            raise RuntimeError(message) from None
        logger.info("decoding in plain PyTorch: %s cannot be compiled: %s", _SOURCE.name, reason)
        return None


def _build() -> Path:
    compiler = find_cpp_compiler()
    if compiler is None:
        raise FileNotFoundError("there is no C++ compiler (CXX, g++ or clang++)")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    sources = [path.read_text("utf-8") for path in (_SOURCE, *_HEADERS)]
    parts = ("with hash", *sources, version.stdout, " ".join(_FLAGS), _cpu())
    name = hashlib.blake2b("\0".join(parts).encode(), digest_size=12).hexdigest()

    def compile(new: Path) -> None:
        command = [compiler, *_FLAGS, str(_SOURCE), "-o", str(new)]
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)

    return build_library(default_cache_dir() / "cpu_decode" / f"{name}.so", compile)


def _cpu() -> str:
    """Describes the CPU features that -march=native uses; several machines may share a home
    folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").split("\n\n", 1)[0].splitlines()
    except OSError:
        lines = []
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join([platform.machine(), *(line for line in lines if line.startswith(wanted))])

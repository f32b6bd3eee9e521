"""Compiles cpu_decode.cpp with the user's compiler, once, and loads it."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import subprocess
from pathlib import Path

from minimind_kernels import backend

from minimind.runtime.cache_folder import default_cache_dir
from minimind.runtime.whole_files import write_whole

logger = logging.getLogger(__name__)

_SOURCE = Path(__file__).with_name("cpu_decode.cpp")
_HEADERS = (_SOURCE.with_name("cpu_products.h"), _SOURCE.with_name("cpu_vectors.h"))
_HASH_BYTES = 20
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
    compiler = os.environ.get("CXX") or "g++"
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    sources = [path.read_text("utf-8") for path in (_SOURCE, *_HEADERS)]
    parts = ("with hash", *sources, version.stdout, " ".join(_FLAGS), _cpu())
    name = hashlib.blake2b("\0".join(parts).encode(), digest_size=12).hexdigest()
    library = default_cache_dir() / "cpu_decode" / f"{name}.so"
    if library.exists() and not _is_whole(library):
        logger.warning("%s is damaged and is compiled again", library)
        library.unlink()
    if not library.exists():
        with write_whole(library) as new:
            command = [compiler, *_FLAGS, str(_SOURCE), "-o", str(new)]
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
            with open(new, "ab") as file:
                file.write(_hash(new.read_bytes()))
    return library


def _is_whole(library: Path) -> bool:
    """Tells whether the library is as it was compiled: its hash stands behind it, where the loader
    does not look. A page that a cut file lacks would end the process (SIGBUS), without a word and
    at each start."""
    content = library.read_bytes()
    return content[-_HASH_BYTES:] == _hash(content[:-_HASH_BYTES])


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_HASH_BYTES).digest()


def _cpu() -> str:
    """Describes the CPU features that -march=native uses; several machines may share a home
    folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").split("\n\n", 1)[0].splitlines()
    except OSError:
        lines = []
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join([platform.machine(), *(line for line in lines if line.startswith(wanted))])

"""Builds the library that gives a PyTorch without CUDA a device to rehearse on; compiled once and
cached."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
from importlib.metadata import version
from pathlib import Path

from minimind.errors import ConfigError
from minimind.runtime.compiled_library import build_library
from minimind.runtime.compiler import find_cpp_compiler

_SOURCE = Path(__file__).with_name("stub.cpp")


def build_stub(folder: Path) -> Path:
    """Finds the library for the installed PyTorch in `folder`, or compiles it, which takes some
    seconds. Raises ConfigError where there is no C++ compiler or it fails."""
    # PyTorch is only located, not imported: the library must be loaded before PyTorch.
    spec = importlib.util.find_spec("torch")
    assert spec is not None, "PyTorch is installed"
    torch = Path(str(spec.origin)).parent
    parts = (b"with hash", _SOURCE.read_bytes(), f"{torch} {version('torch')}".encode())
    key = hashlib.blake2b(b"\0".join(parts)).hexdigest()[:16]
    return build_library(folder / f"cuda-stub-{key}.so", lambda new: _compile(torch, new))


def _compile(torch: Path, new: Path) -> None:
    compiler = find_cpp_compiler()
    if compiler is None:
        raise ConfigError(
            "rehearsing a GPU on a PyTorch without CUDA needs a C++ compiler (CXX, g++ or clang++):"
            " install one"
        )
    include = torch / "include"
    command = [compiler, "-O1", "-std=c++20", "-shared", "-fPIC", str(_SOURCE), "-o", str(new)]
    command += [f"-I{include}", f"-I{include}/torch/csrc/api/include", f"-L{torch / 'lib'}"]
    command += ["-lc10", "-ltorch_cpu", f"-Wl,-rpath,{torch / 'lib'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().split("\n")[0]
        raise ConfigError(f"rehearsing a GPU: {compiler} cannot compile {_SOURCE}: {said}")

"""Builds the library that gives a PyTorch without CUDA a device to rehearse on; compiled once and
cached."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
from importlib.metadata import version
from pathlib import Path

from minimind.errors import ConfigError
from minimind.runtime.cache_folder import locked
from minimind.runtime.compiler import find_compiler
from minimind.runtime.whole_files import write_whole

_SOURCE = Path(__file__).with_name("stub.cpp")


def build_stub(folder: Path) -> Path:
    """Finds the library for the installed PyTorch in `folder`, or compiles it, which takes some
    seconds. Raises ConfigError where there is no C++ compiler or it fails."""
    # PyTorch is only located, not imported: the library must be loaded before PyTorch.
    spec = importlib.util.find_spec("torch")
    assert spec is not None, "PyTorch is installed"
    torch = Path(str(spec.origin)).parent
    key = hashlib.blake2b(_SOURCE.read_bytes() + f"{torch} {version('torch')}".encode())
    library = folder / f"cuda-stub-{key.hexdigest()[:16]}.so"
    if library.exists():
        return library
    compiler = find_compiler("CXX", "g++", "clang++")
    if compiler is None:
        raise ConfigError(
            "rehearsing a GPU on a PyTorch without CUDA needs a C++ compiler (CXX, g++ or clang++):"
            " install one"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with locked(library.with_suffix(".lock")):
        if not library.exists():
            _compile(compiler, torch, library)
    return library


def _compile(compiler: str, torch: Path, library: Path) -> None:
    include = torch / "include"
    command = [compiler, "-O1", "-std=c++20", "-shared", "-fPIC", str(_SOURCE)]
    command += [f"-I{include}", f"-I{include}/torch/csrc/api/include", f"-L{torch / 'lib'}"]
    command += ["-lc10", "-ltorch_cpu", f"-Wl,-rpath,{torch / 'lib'}"]
    with write_whole(library) as new:
        command += ["-o", str(new)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = done.stderr.strip().split("\n")[0]
            raise ConfigError(f"rehearsing a GPU: {compiler} cannot compile {_SOURCE}: {said}")

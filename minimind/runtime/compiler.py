"""Finds a compiler of C or C++."""

from __future__ import annotations

import os
import shutil


def find_compiler(variable: str, *names: str) -> str | None:
    """Finds the compiler that an environment variable names, else the first of `names` on the
    search path. Gives None where there is none."""
    wanted = (os.environ.get(variable), *names)
    return next((found for name in wanted if name and (found := shutil.which(name))), None)


def find_cpp_compiler() -> str | None:
    """Finds a compiler of C++; None where there is none."""
    return find_compiler("CXX", "g++", "clang++")

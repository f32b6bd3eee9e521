"""Records the versions that a run used."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import minimind


def versions() -> dict[str, str]:
    """Gives the versions of Python, MiniMind and the packages that decide a run's numbers; "none"
    for a package that is not installed."""
    found = {"python": platform.python_version(), "minimind": minimind.__version__}
    for package in ("torch", "triton", "deepspeed", "tokenizers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found

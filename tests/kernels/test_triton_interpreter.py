"""Runs this folder's tests of operations a second time, in processes whose Triton interprets its
kernels."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from kernel_rows import INTERPRETED
from minimind_kernels import OPS

FOLDER = Path(__file__).parent
NAMES = sorted({op.function.__module__.rpartition(".")[2] for op in OPS.values()} | {*OPS})
"""Of tests of one operation: its file's or its own is in theirs."""
PROCESSES = 4


@pytest.mark.skipif(INTERPRETED, reason="this is an interpreting process")
@pytest.mark.parametrize("process", range(PROCESSES))
def test_the_triton_bodies_pass_the_same_tests(process: int):
    names = [*NAMES, "model_agrees"][process::PROCESSES]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [*command, "-m", "not gpu and not slow", "-k", " or ".join(names), str(FOLDER)],
        env=os.environ | {"TRITON_INTERPRET": "1", "MINIMIND_KERNELS": "triton"},
        cwd=FOLDER.parents[1], capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]

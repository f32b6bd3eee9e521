"""Runs this folder's tests a second time, in processes whose Triton interprets its kernels."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
TESTS = (
    ("expert_gemm", "swiglu"),
    ("moe_routing", "rope", "model_agrees"),
    ("triton_operators", "rms_norm"),
    ("linear_loss", "linear_token_loss", "linear_kl", "linear_distillation"),
)
"""A process each, of about the same length."""


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="this is an interpreting process"
)
@pytest.mark.parametrize("tests", TESTS, ids=",".join)
def test_the_triton_bodies_pass_the_same_tests(tests: tuple[str, ...]):
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [*command, "-m", "not gpu and not slow", *(str(FOLDER / f"test_{t}.py") for t in tests)],
        env=os.environ | {"TRITON_INTERPRET": "1", "MINIMIND_KERNELS": "triton"},
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]

"""Runs this folder's tests a second time, in processes whose Triton interprets its kernels."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
TESTS = (
    "test_linear_distillation.py",
    "test_linear_loss.py",
    "test_rms_norm.py",
    "test_swiglu.py",
    "test_rope.py",
    "test_linear_kl.py",
    "test_moe_routing.py",
    "test_expert_gemm.py",
    "test_triton_operators.py",
    "test_model_agrees.py",
)


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="this is an interpreting process"
)
@pytest.mark.parametrize("test", TESTS)
def test_the_triton_bodies_pass_the_same_tests(test: str):
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [*command, "-m", "not gpu", str(FOLDER / test)],
        env=os.environ | {"TRITON_INTERPRET": "1", "MINIMIND_KERNELS": "triton"},
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]

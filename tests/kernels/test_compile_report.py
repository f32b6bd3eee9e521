"""Every kernel compiles for real GPUs, and moves and launches what it should, on any machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="an interpreting process compiles nothing"
)


def bench(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "bench.kernels", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip


def test_no_spills_and_registers_within_the_budget():
    result = bench("--compile-report", "--quick")
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]


@pytest.mark.slow
def test_every_preset_within_the_budget():
    result = bench("--compile-report")
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]


def test_launches_and_waits(tmp_path):
    result = bench("--json", str(tmp_path / "kernels.json"))
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    rows = json.loads((tmp_path / "kernels.json").read_text())["rows"]
    assert {row["waiting_operators"] for row in rows} == {0}
    # Forward and backward; a weight's gradient is summed in a launch of its own. The losses go
    # over 16,384 tokens in four chunks, once or, where the gradient may be any or a function of the
    # log-probability, twice. Experts: two products forward; backward one for the activation, one
    # for x, one for each weight.
    assert {row["name"]: row["launches"] for row in rows} == {
        "rms_norm": 3,
        "add_rms_norm": 3,
        "rope": 2,
        "qk_norm_rope": 3,
        "swiglu": 2,
        "swiglu_linear": 2,
        "moe_routing": 3,
        "expert_ffn": 6,
        "linear_cross_entropy": 4,
        "linear_cross_entropy_any_grad": 8,
        "linear_token_loss": 8,
        "linear_kl": 4,
        "linear_distillation": 4,
    }

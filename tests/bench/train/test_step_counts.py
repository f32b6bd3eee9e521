"""What a training step asks of the host, to the last operator: a change of it is made knowingly."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch

from bench.kernels.tables import build_step_table
from bench.report.__main__ import ROOT


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of a process of its own: under ZeRO-3 DeepSpeed changes PyTorch's functions for good."""
    path = tmp_path_factory.mktemp("counts") / "step_counts.json"
    command = [sys.executable, "-m", "bench.train.step_counts", "--json", str(path)]
    subprocess.run(command, cwd=ROOT, check=True)
    return json.loads(path.read_text(encoding="utf-8"))["rows"]


def test_launches(rows: list[dict[str, Any]]):
    plain, kernels, experts = rows
    assert plain["kernel_launches"] == 0
    # A layer: two norms (forward, backward, the weight's sum), RoPE and SwiGLU (there and back).
    # After them the last norm, the loss over eight chunks of 2,048 tokens, and the one gradient
    # that they all received.
    assert kernels["kernel_launches"] == 8 * (2 * 3 + 2 + 2) + 3 + 8 + 1
    # The shared expert is a layer's SwiGLU; routing takes two launches and one back; the experts'
    # products take five, and each way a sum over a token's slots.
    assert experts["kernel_launches"] == 8 * (2 * 3 + 2 + 2 + 3 + 7) + 3 + 8 + 1
    for row in (kernels, experts):
        assert not row["sync_operators"], "nothing waits for the GPU"


def test_the_forward_keeps_little(rows: list[dict[str, Any]]):
    """The goal for the smallest model: a step takes at most 120 KB a token beyond the states."""
    plain, kernels, _ = rows
    assert kernels["kept_bytes_per_token"] < 115_000
    assert kernels["rehearsed_peak_bytes"] < plain["rehearsed_peak_bytes"]
    launched = kernels["device_operators"] + kernels["kernel_launches"]
    assert launched < plain["device_operators"] / 2


@pytest.mark.skipif(not torch.__version__.startswith("2.13."), reason="counted with PyTorch 2.13")
def test_the_table_is_that_of_the_code(rows: list[dict[str, Any]]):
    assert build_step_table(rows) in (ROOT / "kernels" / "README.md").read_text(encoding="utf-8"), (
        "python -m bench.train.step_counts --json bench/results/DEVICE/step_counts.json, then "
        "python -m bench.report"
    )

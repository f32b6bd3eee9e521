"""Whole runs on a GPU: the same bits twice, and both forms of the kernels to the same loss."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_runs import ROOT, TRAIN, final_weights, read_losses

STEPS = 200


def start_run(folder: Path, kernels: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(TRAIN), "--ds_config", "zero2.json", "--max_steps", str(STEPS),
               "--output_dir", str(folder), "--eval_every", "0", "--set", "deterministic=true",
               "--set", "log_every=50"]  # fmt: skip
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"MINIMIND_KERNELS": kernels})


@pytest.mark.gpu
@pytest.mark.slow
def test_200_steps_are_the_same_twice_and_alike_in_both_forms(tmp_path: Path):
    """bf16 on the embedded sample data, which `tiny` learns in so many steps."""
    runs = {"first": "triton", "again": "triton", "plain": "torch"}
    processes = [start_run(tmp_path / name, kernels) for name, kernels in runs.items()]
    assert [process.wait(200) for process in processes] == [0, 0, 0]
    losses = {name: [loss for _, loss, _ in read_losses(tmp_path / name)] for name in runs}
    assert len(losses["first"]) == STEPS
    assert losses["first"] == losses["again"]
    weights, again = (final_weights(tmp_path / name) for name in ("first", "again"))
    assert all(torch.equal(tensor, again[name]) for name, tensor in weights.items())
    ends = {name: statistics.mean(of_run[-20:]) for name, of_run in losses.items()}
    assert ends["first"] < 0.6 * losses["first"][0]
    assert ends["plain"] == pytest.approx(ends["first"], rel=0.03)

"""What lies between an operation and a GPU's driver, run where no GPU is: Triton's binder, compiler
and launcher, for every operation that there is."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from minimind_kernels import OPS, backend

from bench.kernels import host

ROOT = Path(__file__).parents[3]
PROBLEM = backend._why_no_launcher()

pytestmark = [
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") == "1", reason="an interpreting process compiles nothing"
    ),
    pytest.mark.skipif(PROBLEM is not None, reason=PROBLEM or ""),
]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: only the first driver that a process loads is used."""
    folders = os.pathsep.join(map(str, (ROOT, ROOT / "kernels", ROOT / "tests")))
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": folders, "CUDA_VISIBLE_DEVICES": ""},
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_every_operation_is_launched_however_its_inputs_lie(arch: str):
    result = run("-m", "kernel_launches", arch)
    assert result.returncode == 0, result.stdout + result.stderr[-4000:]


@pytest.mark.slow
def test_other_libraries_kernels_are_launched(monkeypatch: pytest.MonkeyPatch):
    for package in ("liger_kernel", "cut_cross_entropy"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    # It would be timed on the GPU which of its kernels is the quickest.
    monkeypatch.setenv("LIGER_FUSED_MOE_AUTOTUNE", "0")
    result = run("-m", "rival_launches")
    assert result.returncode == 0, result.stdout + result.stderr[-4000:]
    assert "minimind3 add_rms_norm liger: " in result.stdout


def test_a_launch_that_a_gpu_would_refuse_is_refused():
    code = (
        "from kernel_launches import *\n"
        "from minimind_kernels.triton_impl import swiglu\n"
        "whole = swiglu.launch\n"
        "swiglu.launch = lambda kernel, grid, *rest, **named: whole(\n"
        "    kernel, (grid[0], 70000), *rest, **named)\n"
        "sys.exit(main('sm_90'))\n"
    )
    result = run("-c", code)
    assert result.returncode == 1
    assert "swiglu, aligned: RuntimeError: Triton Error [CUDA]: the stub" in result.stdout


def test_what_each_operation_costs_the_host(tmp_path: Path):
    result = run("-m", "bench.kernels", "--host", "--json", str(tmp_path / "host.json"))
    assert result.returncode == 0, result.stdout + result.stderr[-4000:]
    rows = json.loads((tmp_path / "host.json").read_text())["rows"]
    assert {row["name"] for row in rows} == {name for op in OPS.values() for name in op.launches}
    for row in rows:
        times = (row[f"host_{part}_us"] for part in ("forward", "backward", "launches"))
        assert row["launches"] > 0 < min(times)
    assert result.stdout.count("\n") >= len(rows)
    assert len(host.format_rows(rows).splitlines()) == len(rows) + 2

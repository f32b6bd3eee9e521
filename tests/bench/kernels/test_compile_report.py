"""Every kernel compiles for real GPUs, and moves and launches what it should, on any machine."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from minimind_kernels.op import OPS, PRESETS, build_cases

ROOT = Path(__file__).parents[3]

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


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_t4_can_run_every_kernel(dtype, monkeypatch):
    """In its 64 KiB of shared memory; backend.py keeps the products of experts, which spill, off
    GPUs so old."""
    from bench.kernels import compile_report

    device = compile_report.config.Device("sm_75", 40)
    target = compile_report.GPUTarget("cuda", 75, 32)
    monkeypatch.setitem(compile_report.TARGETS, "sm_75", (target, device))
    sizes = replace(PRESETS[4], experts_per_token=2)  # Whose slots are summed.
    cases = build_cases(sizes, 4096, dtype, "meta")
    usages = [usage for _, usage in compile_report.compile_cases("sm_75", device, dtype, cases)]
    assert {usage.kernel for usage in usages} == {
        name for op in OPS.values() for name in op.registers
    }
    for usage in usages:
        assert usage.shared_bytes <= 64 * 1024, usage
        assert usage.spills <= 64 or usage.kernel.startswith("expert_"), usage


def test_launches_and_waits(tmp_path):
    result = bench("--json", str(tmp_path / "kernels.json"))
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    rows = json.loads((tmp_path / "kernels.json").read_text())["rows"]
    assert {row["waiting_operators"] for row in rows} == {0}
    # A weight's gradient is summed in a launch of its own. The losses go over 16,384 tokens in four
    # chunks, once or, where the gradient may be any or a function of the log-probability, twice.
    # Experts: two products forward; backward one for the activation, one for x, one for the
    # weights; with several slots a token a sum each way.
    expected = {name: number for op in OPS.values() for name, number in op.launches.items()}
    launched = [row for row in rows if row["launches"]]
    assert {row["name"] for row in launched} == set(expected)
    for row in launched:
        of_case = expected[row["name"]]
        number = of_case if isinstance(of_case, int) else of_case[row["preset"]]
        assert row["launches"] == number, row


def test_each_budget_is_one_kernels():
    """And `--update-budget` writes it where it stands."""
    from bench.kernels import compile_report

    found = [name for op in OPS.values() for name in op.registers]
    assert len(found) == len(set(found))
    text = "".join(
        path.read_text() for path in Path(compile_report.op.__file__).parent.glob("*.py")
    )
    for name, budget in ((n, b) for op in OPS.values() for n, b in op.registers.items()):
        usages = [
            compile_report.Usage(name, target, "bfloat16", getattr(budget, target), 0, 0)
            for target in compile_report.TARGETS
        ]
        assert compile_report._line(usages, name, "") in text

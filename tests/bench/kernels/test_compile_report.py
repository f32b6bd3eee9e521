"""Every kernel compiles for real GPUs, and moves and launches what it should, on any machine."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from minimind_kernels.op import OPS, PRESETS, Inputs, Registers

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="an interpreting process compiles nothing"
)


def bench(*arguments, limit_s=900):
    return subprocess.run(
        [sys.executable, "-m", "bench.kernels", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=limit_s, check=False,
    )  # fmt: skip


def test_no_spills_and_registers_within_the_budget():
    result = bench("--compile-report", "--quick")
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]


@pytest.mark.slow
def test_every_preset_within_the_budget():
    result = bench("--compile-report", limit_s=3600)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_t4_can_run_every_kernel(dtype):
    """But the products of experts, which backend.py keeps off GPUs so old."""
    from bench.kernels import compile_report

    left_out = compile_report.refused("sm_75")
    assert [op.name for op in left_out] == ["expert_ffn"]
    assert not compile_report.refused("sm_80")
    assert not compile_report.refused("gfx942")
    cases = compile_report._cases("sm_75", PRESETS[4], dtype)
    device = compile_report.TARGETS["sm_75"].device
    usages = [usage for _, usage in compile_report.compile_cases("sm_75", device, dtype, cases)]
    assert {usage.kernel for usage in usages} == {
        name for op in OPS.values() if op not in left_out for name in op.registers
    }
    assert not compile_report.check(usages)


def test_what_a_report_is_checked_for():
    from bench.kernels import compile_report

    fine = compile_report.Usage("swiglu.forward", "sm_80", "bfloat16", 32, 0, 0)
    assert not compile_report.check([fine])
    faults = {
        "200000 bytes shared, a block has 166912": replace(fine, shared_bytes=200_000),
        "16 bytes of spilled registers": replace(fine, spills=16),
        "250 registers, the budget is": replace(fine, registers=250),
        "no `Op` has a budget": replace(fine, kernel="swiglu.sideways"),
    }
    for text, usage in faults.items():
        (problem,) = compile_report.check([usage])
        assert text in problem
    # Other models' sizes have no budget: what they take is in the table alone.
    assert not compile_report.check([replace(fine, registers=250, spills=16, sizes="others")])


def test_launches_and_waits(tmp_path):
    result = bench("--json", str(tmp_path / "kernels.json"))
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    rows = json.loads((tmp_path / "kernels.json").read_text())["rows"]
    assert {row["waiting_operators"] for row in rows} == {0}
    # A weight's gradient is summed in a launch of its own. The losses go over 16,384 tokens in
    # eight chunks, once or, where the gradient may be any or a function of the log-probability,
    # twice; where it may not be any, one more launch finds the one factor. Experts: two products
    # forward; backward one for the activation, one for x, one for the weights; with several slots a
    # token a sum each way.
    expected = {name: number for op in OPS.values() for name, number in op.launches.items()}
    launched = [row for row in rows if row["launches"]]
    assert {row["name"] for row in launched} == set(expected)
    for row in launched:
        of_case = expected[row["name"]]
        number = of_case if isinstance(of_case, int) else of_case[row["preset"]]
        assert row["launches"] == number, row


def test_each_budget_is_one_kernels(tmp_path, monkeypatch):
    """And `--update-budget` writes it where it stands, for kernels compiled for every target."""
    from bench.kernels import compile_report

    found = [name for op in OPS.values() for name in op.registers]
    assert len(found) == len(set(found))
    package = Path(compile_report.op.__file__).parent
    for path in package.glob("*.py"):
        shutil.copy(path, tmp_path)
    (tmp_path / "unknown.py").write_text(unknown := '"unknown.forward": Registers(1, 2, 3, 4, 5)')
    monkeypatch.setattr(compile_report.op, "__file__", str(tmp_path / "op.py"))
    usages = [
        compile_report.Usage(name, target, "bfloat16", place + number, 0, 0)
        for place, name in enumerate(found)
        for number, target in enumerate(Registers._fields)
    ]
    budget = compile_report.write_budget(usages[:-1])
    *complete, last = found
    assert budget[last] == compile_report.read_budget()[last]
    text = "".join(path.read_text() for path in tmp_path.glob("*.py"))
    for place, name in enumerate(complete):
        assert budget[name] == Registers(*range(place, place + len(Registers._fields)))
        assert f'"{name}": Registers({", ".join(map(str, budget[name]))})' in text
    assert unknown in text
    assert not compile_report.check(usages, budget | {last: Registers(*[1000] * 5)})


def test_the_kernels_of_one_operation_for_all_cases_that_launch_them():
    from bench.kernels import compile_report

    device, sizes = compile_report.TARGETS["sm_90"].device, PRESETS[4]

    def compiled(*names, ops=None):
        cases = [OPS[name].build(Inputs(sizes, 4096, torch.bfloat16, "meta")) for name in names]
        found = compile_report.compile_cases("sm_90", device, torch.bfloat16, cases, ops=ops)
        return {key for key, usage in found if usage.kernel.startswith("swiglu.")}

    both = compiled("swiglu", "swiglu_linear", ops=["swiglu"])
    assert both == compiled("swiglu") | compiled("swiglu_linear")
    assert both > compiled("swiglu")
    assert not compiled("swiglu", ops=["rms_norm"])

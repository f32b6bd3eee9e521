"""bench.kernels.small launches every kernel there is, and runs where there is no GPU."""

from __future__ import annotations

import pytest
import torch
from minimind_kernels.op import PRESETS, Sizes, build_cases

from bench.kernels import small
from bench.kernels.compile_report import TARGETS, launches_to


def launched(sizes: tuple[Sizes, ...], num_tokens: int) -> set[str]:
    names: set[str] = set()
    with launches_to(lambda kernel, *_: names.add(kernel.__name__), TARGETS["sm_90"].device):
        for of_one in sizes:
            for case in build_cases(of_one, num_tokens, torch.bfloat16, "meta"):
                case.run()
    return names


def test_no_kernel_of_the_presets_is_left_out() -> None:
    names = launched(small.SIZES, small.NUM_TOKENS)
    assert names == launched(PRESETS, 4096)
    assert len(names) > 10


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_it_runs_on_a_cpu(dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert small.main(["--dtypes", dtype, "--tokens", "259"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith(f"expert_ffn {dtype}") for line in lines) == 2

"""Launches every operation, forward and backward, on a stub of a GPU's driver, in ways in which
inputs may lie in memory: `python -m kernel_launches sm_90`. A line for each that was not launched
as it should be, then how many were."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from kernel_rows import typical_row
from minimind_kernels import OPS
from minimind_kernels.op import ODD, Case, Inputs, Op
from minimind_kernels.triton_impl import launch
from torch import Tensor

from bench.kernels.compile_report import name_kernel
from bench.kernels.stub_driver import stub_gpu

ALIGNED = replace(
    ODD, hidden=64, heads=4, kv_heads=2, head_size=32, ffn=48, qk_norm=True, vocab=256, experts=4
)


def odd_rows(tensor: Tensor) -> Tensor:
    """The same values, of rows an odd number apart that begin beside every alignment."""
    wide = tensor.new_zeros(*tensor.shape[:-1], (tensor.shape[-1] + 2) | 1)
    wide[..., 1 : tensor.shape[-1] + 1] = tensor
    return wide[..., 1 : tensor.shape[-1] + 1]


def turned(tensor: Tensor) -> Tensor:
    """The same values, of which those of a row lie apart."""
    return tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor.repeat_interleave(2)[::2]


LAYOUTS: Mapping[str, Callable[[Tensor], Tensor]] = {"odd rows": odd_rows, "turned": turned}


def cases_of(op: Op) -> Iterator[tuple[str, Case]]:
    """Aligned and contiguous, then odd sizes laid out in each way, then no row at all."""
    yield "aligned", op.build(Inputs(ALIGNED, 48, torch.float16, "cpu"))
    row = typical_row(op)
    for name, lay_out in LAYOUTS.items():
        case = op.tested_case(torch.bfloat16, "cpu", **row)
        inputs = tuple(lay_out(t.detach()).requires_grad_(t.requires_grad) for t in case.inputs)
        yield name, replace(case, inputs=inputs)
    (key,) = (name for name in row if name.split()[0] == "tokens")
    row[key] = next(v for v in op.tested[key] if (v[0] if isinstance(v, tuple) else v) == 0)
    yield "no rows", op.tested_case(torch.bfloat16, "cpu", **row)


def main(arch: str) -> int:
    torch.set_num_threads(1)
    seen: set[str] = set()
    asked: list[str] = []
    num_cases, problems = 0, []

    def note(kernel: Any, *_: Any) -> None:
        asked.append(name_kernel(kernel))

    with stub_gpu(arch) as launches:
        for op in OPS.values():
            for name, case in cases_of(op):
                num_cases += 1
                asked.clear()
                before = launches.value
                try:
                    case.run()
                    made = launches.value - before
                    with mock.patch.object(launch, "_watcher", note):
                        case.run()
                except Exception as error:
                    problems.append(f"{op.name}, {name}: {type(error).__name__}: {error}")
                    continue
                seen |= set(asked)
                if made != len(asked) or (not made and name != "no rows"):
                    problems.append(f"{op.name}, {name}: {made} launches of {asked}")
    problems += [
        f"{kernel} of {op.name} was not launched"
        for op in OPS.values()
        for kernel in op.registers
        if kernel not in seen
    ]
    for line in (*problems, f"{num_cases} cases launched {launches.value} kernels"):
        sys.stdout.write(line + "\n")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""Times kernels under pytest-benchmark, at sizes for any machine: `pytest bench`.

Each kernel is called by itself, with no rival in turns: for a quick look and for `pytest-benchmark
compare`. Lasting figures come from the programs (`python -m bench.NAME`). `make test` runs each
kernel once here, untimed.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from minimind_kernels.op import PRESETS, build_cases

from bench.kernels.timing import directions
from minimind.runtime.devices import find_device

pytest.importorskip("pytest_benchmark")

DEVICE = find_device()
KERNEL_TOKENS = 256
NUM_KERNELS = len(list(build_cases(PRESETS[0], 2, torch.float32, "meta")))


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("index", range(NUM_KERNELS))
def test_kernel(benchmark: Any, index: int, direction: str) -> None:
    where = str(DEVICE.torch_device)
    case = list(build_cases(PRESETS[0], KERNEL_TOKENS, torch.float32, where))[index]
    (call,) = dict(directions(case, [(case.ours, case.inputs)]))[direction]

    def waited() -> None:
        call()
        if DEVICE.kind == "gpu":
            torch.cuda.synchronize()

    benchmark.extra_info["kernel"] = f"{case.name}.{direction}"
    benchmark.pedantic(waited, rounds=5, warmup_rounds=1)

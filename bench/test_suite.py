"""Times kernels under pytest-benchmark, at sizes for any machine: `pytest bench`.

It makes one call at a time, not in turns with a rival, for a quick look and for `pytest-benchmark
compare`; lasting figures come from the programs (`python -m bench.NAME`). `make test` runs
everything here once, untimed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from minimind_kernels.op import PRESETS, build_cases

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
    call: Callable[[], Any] = lambda: case.ours(*case.inputs)  # noqa: E731
    if direction == "backward":
        outputs = case.ours(*case.inputs)
        outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
        outputs = tuple(o.sum() for o in outputs) if case.uniform_grad else outputs
        upstream = [torch.ones_like(o) for o in outputs]
        leaves = [t for t in case.inputs if t.requires_grad]
        call = lambda: torch.autograd.grad(outputs, leaves, upstream, retain_graph=True)  # noqa: E731

    def waited() -> None:
        call()
        if DEVICE.kind == "gpu":
            torch.cuda.synchronize()

    benchmark.extra_info["kernel"] = f"{case.name}.{direction}"
    benchmark.pedantic(waited, rounds=5, warmup_rounds=1)

"""The benchmarks under pytest-benchmark: `pytest bench`, at sizes for any machine.

What is timed here is what the programs time, one call at a time and without pairs: for a look and
for `pytest-benchmark compare`. Figures to keep come from the programs (`python -m bench.NAME`).
`make test` runs everything here once, untimed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import harness, kernels
from bench.data import __main__ as data
from bench.inference import __main__ as inference
from bench.kernel_cases import PRESETS, build_cases
from bench.train import __main__ as train
from bench.train import step_counts
from minimind.runtime.devices import find_device

pytest.importorskip("pytest_benchmark")

DEVICE = find_device()
KERNEL_TOKENS = 256
NUM_KERNELS = len(list(build_cases(PRESETS[0], 2, torch.float32, "meta")))
SMALL_STEPS = ["--steps", "2", "--warmup", "1", "--accumulation", "1", "--seq_len", "64",
               "--micro_batch", "2", "--original_batch", "2", "--rows", "engine"]  # fmt: skip
PROGRAMS: dict[str, tuple[Callable[[list[str]], int], list[str]]] = {
    "train": (train.main, ["--model", "tiny", *SMALL_STEPS]),
    "inference": (inference.main, ["--model", "tiny", "--batch", "2", "--prompt", "8", "--new", "8",
                                   "--rounds", "2", "--rows", "minimind", "--clients", "none"]),
    "data": (data.main, ["--megabytes", "0.3", "--rounds", "1"]),
    "kernels": (kernels.main, ["--tokens", str(KERNEL_TOKENS)]),
    "step_counts": (step_counts.main, []),
}  # fmt: skip


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


@pytest.mark.parametrize("name", PROGRAMS)
def test_program(benchmark: Any, tmp_path: Path, name: str) -> None:
    """A program as a whole, once; its rows have every field of the schema."""
    main, argv = PROGRAMS[name]
    path = tmp_path / "results.json"
    assert benchmark.pedantic(main, args=(["--json", str(path), *argv],), rounds=1) == 0
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["machine"]["ceilings"]["product_flops_per_s"] > 0
    for row in found["rows"]:
        assert set(harness.ROW_FIELDS) <= row.keys()
        if row["useful_tokens_per_s"]:
            benchmark.extra_info[f"{row['name']} tokens/s"] = round(row["useful_tokens_per_s"])

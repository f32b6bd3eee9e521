"""The suite under pytest-benchmark: `pytest bench`, at sizes for any machine.

What is timed here is what the modules time, one call at a time and without pairs: for a look and
for `pytest-benchmark compare`. Figures to keep come from the modules (`python -m bench.NAME`).
`make test` runs everything here once, untimed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from minimind_kernels.op import PRESETS, build_cases

from bench import data as bench_data
from bench import harness, step_counts, train_step
from bench import inference as bench_inference
from bench.data_rows import FORMATS, DataRow, DataSpec
from bench.data_rows import ROWS as DATA_ROWS
from bench.kernels import __main__ as kernels
from minimind.runtime.devices import find_device
from minimind.samples.text import load_sample_tokenizer

pytest.importorskip("pytest_benchmark")

DEVICE = find_device()
KERNEL_TOKENS = 256
ROUNDS = 5
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
    benchmark.extra_info["kernel"] = f"{case.name}.{direction}"
    benchmark.pedantic(_waited(call), rounds=ROUNDS, warmup_rounds=1)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("row", DATA_ROWS)
def test_data(benchmark: Any, tmp_path: Path, row: str, format: str) -> None:
    path = tmp_path / "data.jsonl"
    bench_data.write_data(path, format, 300_000)
    load_sample_tokenizer().save(tmp_path / "tokenizer")
    served = DataRow(
        DataSpec(
            row=row, format=format, tokenizer=tmp_path / "tokenizer", cache=tmp_path / "cache",
            seq_len=256, micro_batch=8, rounds=1,
        )
    )  # fmt: skip
    once = served.prepare(path)
    counts = benchmark.pedantic(once, rounds=ROUNDS, warmup_rounds=1)
    if benchmark.enabled:
        benchmark.extra_info["useful_tokens_per_s"] = counts["tokens"] / benchmark.stats["median"]


def test_training_step(benchmark: Any, tmp_path: Path) -> None:
    argv = ["--model", "tiny", "--steps", "2", "--warmup", "1", "--accumulation", "1",
            "--seq_len", "64", "--micro_batch", "2", "--original_batch", "2"]  # fmt: skip
    if not benchmark.enabled:  # tests/bench/test_train_step.py starts them all
        argv += ["--rows", "engine"]
    rows = _run(benchmark, train_step.main, tmp_path, argv)
    assert "engine" in {row["name"] for row in rows}


def test_inference(benchmark: Any, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    argv = ["--model", "tiny", "--batch", "2", "--prompt", "8", "--new", "8", "--rounds", "2"]
    _run(benchmark, bench_inference.main, tmp_path, argv)


def test_kernels_module(benchmark: Any, tmp_path: Path) -> None:
    _run(benchmark, kernels.main, tmp_path, ["--tokens", str(KERNEL_TOKENS)])


def test_step_counts(benchmark: Any, tmp_path: Path) -> None:
    for row in _run(benchmark, step_counts.main, tmp_path, []):
        assert sum(row["sync_operators"].values()) == 0


def _run(
    benchmark: Any, main: Callable[[list[str]], int], folder: Path, argv: list[str]
) -> list[dict[str, Any]]:
    """A module as a whole, once; its rows, which have every field of the schema."""
    path = folder / "results.json"
    assert benchmark.pedantic(main, args=(["--json", str(path), *argv],), rounds=1) == 0
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["machine"]["ceilings"]["product_flops_per_s"] > 0
    for row in found["rows"]:
        assert set(harness.ROW_FIELDS) <= row.keys()
        if row["useful_tokens_per_s"]:
            name = f"{row['model']} {row['name']} tokens/s"
            benchmark.extra_info[name] = round(row["useful_tokens_per_s"])
    return found["rows"]


def _waited(call: Callable[[], Any]) -> Callable[[], None]:
    def waited() -> None:
        call()
        if DEVICE.kind == "gpu":
            torch.cuda.synchronize()

    return waited

"""What the gate must catch, planted in a real training step: a leak, a launch, a wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import minimind_kernels as K
import numpy as np
import pytest
import torch

from bench.gate.verdict import Comparison, Pair
from bench.gate.verdict import Run as Measured
from bench.train.documents import Documents
from bench.train.specs import RowSpec
from bench.train.worker import TrainedRow
from minimind.run.arguments import parse_arguments
from minimind.run.run import Run
from minimind.runtime.devices import find_device
from minimind.runtime.memory import live_tensor_bytes
from minimind.runtime.ranks import Ranks
from minimind.stages.pretrain import Pretrain
from minimind.types import Batch, LossSum

Plant = Callable[[Batch], None]


pytestmark = pytest.mark.usefixtures("no_launcher")


def measured(plant: Plant | None = None) -> dict[str, Any]:
    """A row of bench.train's engine, with `plant` called in each micro-batch: of three the one with
    the smallest peak, because Gloo's thread may free a bucket late, and nothing records that."""
    return min((_measured(plant) for _ in range(3)), key=lambda found: found["peak_bytes"])


def _measured(plant: Plant | None) -> dict[str, Any]:
    flags = ["--seq_len", "64", "--set", "micro_batch_size=2", "--set", "train_batch_size=4"]
    for setting in ("num_hidden_layers=1", "hidden_size=32"):
        flags += ["--set", setting]
    flags += ["--max_steps", "8"]
    run = Run.on(parse_arguments(flags), Ranks(0, 0, 1), find_device()).resolved
    random = np.random.default_rng(0)
    ids = [random.integers(3, 500, size=n) for n in random.integers(2, 33, size=60)]
    spec = RowSpec(
        name="engine",
        ds_config_name="zero2.json",
        run=run,
        documents=Documents(ids=ids, max_tokens=32, pad_id=0, seed=1),
        original_batch=1,
        steps=8,
    )
    whole = Pretrain.loss

    def loss(self: Pretrain, policy: Any, batch: Batch) -> LossSum:
        if plant:
            plant(batch)
        return whole(self, policy, batch)

    # DeepSpeed keeps the engines of a process, and with them all those of earlier tests.
    before = live_tensor_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pretrain, "loss", loss)
        row = TrainedRow(spec)
        row.build()
        row.step(0)
        row.start_timing()
        row.step(1)
        found = row.measure()
    return found | {"peak_bytes": found["peak_bytes"] - before}


@pytest.fixture(scope="module")
def base() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        measured()  # what is made once in a process
        return measured()


def verdict(base: dict[str, Any], head: dict[str, Any]) -> tuple[str, str]:
    found = Comparison.build("x", [Pair(Measured(1.0, {"x": base}), Measured(1.0, {"x": head}))])
    return found.verdict, found.why


def test_the_same_code_again_is_the_same(base: dict[str, Any]) -> None:
    assert verdict(base, measured()) == ("same", "")


def test_a_leak_is_caught(base: dict[str, Any]) -> None:
    """A hundredth of the peak, kept in each micro-batch."""
    kept = []
    size = base["peak_bytes"] // 400
    found = verdict(base, measured(lambda batch: kept.append(torch.zeros(size))))
    assert found[0] == "worse"
    assert found[1].startswith("more memory")


def test_one_more_launch_is_caught(base: dict[str, Any]) -> None:
    x_MD, weight_D = torch.ones(4, 8), torch.ones(8)
    found = verdict(base, measured(lambda batch: (K.rms_norm(x_MD, weight_D, 1e-6), None)[1]))
    assert found[0] == "worse"
    assert f"dispatched_operators {base['dispatched_operators']:,} -> " in found[1]


def test_a_wait_for_the_device_is_caught(base: dict[str, Any]) -> None:
    def wait(batch: Batch) -> None:
        batch.labels_BT.max().item()

    found = verdict(base, measured(wait))
    waits = sum(base["sync_operators"].values())
    assert found[0] == "worse"
    assert f"sync_operators {waits:,} -> {waits + 2:,}" in found[1]

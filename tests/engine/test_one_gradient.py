"""One gradient however a step is split: on the real engine, and an alarm for each way to get it
wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import one_gradient
import pytest
import torch
from one_gradient import ROWS, Split, audit_on_ranks, list_splits

from minimind.config.deepspeed_json import load_ds_config
from minimind.engine.deepspeed_engine import DeepSpeedEngine
from minimind.engine.process_group import start_ranks
from minimind.runtime.devices import find_device
from minimind.runtime.ranks import Ranks
from minimind.stages.pretrain import Pretrain
from minimind.types import LossSum

ALONE = Ranks(0, 0, 1)
Audit = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def audit(no_launcher: None, tmp_path: Path) -> Audit:
    """audit(splits) in this process, on a model of two layers."""
    path = tmp_path / "model.json"
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    path.write_text(json.dumps(sizes | {"num_key_value_heads": 2, "vocab_size": 4096}))

    def run(*splits: Split) -> list[dict[str, Any]]:
        device = find_device()
        start_ranks(ALONE, device)
        return list(one_gradient.audit(splits, str(path), 32, device, ALONE))

    return run


def test_every_split_has_one_gradient(audit: Audit) -> None:
    splits = [
        Split(micro_batch=ROWS),
        Split(micro_batch=2, packing=1),
        Split(micro_batch=4, ds_config="zero3.json"),
    ]
    splits += [Split(micro_batch=4, model="experts"), Split(micro_batch=4, model="experts+aux")]
    for row in audit(*splits, Split(micro_batch=1, precision="bf16")):
        assert row["is_one_gradient"], row


def test_a_mean_of_means_is_caught(audit: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each micro-batch's loss divided by its own count, and their mean taken: right for one
    micro-batch alone."""
    whole, start = Pretrain.loss, DeepSpeedEngine.start_step
    counts: list[torch.Tensor] = []

    def started(self: DeepSpeedEngine, total_count: torch.Tensor) -> None:
        counts.append(total_count)
        start(self, total_count)

    def divided(self: Pretrain, policy: Any, batch: Any) -> LossSum:
        loss = whole(self, policy, batch)
        if not isinstance(policy, DeepSpeedEngine):  # the reference
            return loss
        mean = loss.total / max(1, batch.count)
        return LossSum(total=mean * counts[-1] / policy._accumulation)

    monkeypatch.setattr(DeepSpeedEngine, "start_step", started)
    monkeypatch.setattr(Pretrain, "loss", divided)
    one, four, sixteen = audit(Split(micro_batch=ROWS), Split(micro_batch=4), Split(micro_batch=1))
    assert one["is_one_gradient"]
    assert not four["is_one_gradient"]
    assert not sixteen["is_one_gradient"]
    assert sixteen["deviation"] > four["deviation"] > 0.01


def test_sums_in_bf16_are_caught_where_fp32_was_asked_for(
    audit: Audit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bound = one_gradient.bound
    narrow = load_ds_config("zero2.json", {})
    del narrow["data_types"]
    (tmp_path / "narrow.json").write_text(json.dumps(narrow))
    ours = Split(micro_batch=1, precision="bf16", ds_config=str(tmp_path / "narrow.json"))
    (row,) = audit(ours)
    assert row["is_one_gradient"]
    asked = {"data_types": {"grad_accum_dtype": "fp32"}}
    monkeypatch.setattr(
        one_gradient,
        "bound",
        lambda s, run: bound(s, type("Run", (), {"ds_config": run.ds_config | asked})()),
    )
    (row,) = audit(ours)
    assert not row["is_one_gradient"]


def test_a_part_that_never_arrives_is_caught(audit: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a rank whose gradient no all-reduce adds: half of the step is missing."""
    rows = one_gradient.packed_rows
    lost = {"engine": True}

    def half(*arguments: Any) -> Any:
        found = rows(*arguments)
        if lost.pop("engine", False):
            return [*found[: ROWS // 2], *found[: ROWS // 2]]
        return found

    monkeypatch.setattr(one_gradient, "packed_rows", half)
    (row,) = audit(Split(micro_batch=4))
    assert row["deviation"] > 0.1


def test_a_gradient_that_is_not_a_number_is_none(
    audit: Audit, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = one_gradient.step_gradient

    def broken(*arguments: Any) -> Any:
        return {name: value * torch.nan for name, value in whole(*arguments).items()}

    monkeypatch.setattr(one_gradient, "step_gradient", broken)
    (row,) = audit(Split(micro_batch=4))
    assert not row["is_one_gradient"]


@pytest.mark.parametrize("ranks", [1, 2, 4, 16])
def test_a_step_has_the_same_rows_however_it_is_split(ranks: int) -> None:
    splits = list_splits(["zero2.json"], ranks)
    assert {s.accumulation * s.micro_batch * s.ranks for s in splits} == {ROWS}
    kept = {s.micro_batch for s in splits if s.model == "experts+aux"}
    assert ranks == ROWS or kept == {2}
    assert {s.packing for s in splits} == {0, 1}


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_every_split_of_every_shipped_json(ranks: int, tmp_path: Path) -> None:
    if find_device().kind == "gpu" and ranks > torch.cuda.device_count():
        pytest.skip("there are fewer GPUs")
    names = [f"zero{stage}.json" for stage in range(4)]
    rows = audit_on_ranks(ranks, "tiny", 48, names, tmp_path / "rows.json")
    assert {(row["ranks"], row["ds_config"]) for row in rows} == {(ranks, name) for name in names}
    for row in rows:
        assert row["is_one_gradient"], row

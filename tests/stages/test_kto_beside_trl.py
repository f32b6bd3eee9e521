"""KTO's loss and gradients beside TRL's, from the same answers and the same mismatched ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
import trl
from hf_folders import assert_gradients_of_hf
from labelled_answers import CONFIG, WEIGHTED, build, build_answers, load, nearby, prepared, save
from small_models import random_model
from torch import Tensor

from minimind.data.unpaired_format import UnpairedBatch
from minimind.types import IGNORE_INDEX, UnitBatch


def padded_inputs(batch: UnitBatch, prefix: str = "") -> dict[str, Tensor]:
    """As TRL's collator builds them: each document a row."""
    rows, masks = [], []
    for place in (batch.unit_ids_P >= 0).nonzero().flatten().tolist():
        rows.append(batch.ids_BT.flatten()[batch.doc_M == place])
        labels = batch.labels_BT.flatten()[batch.doc_M == place]
        masks.append(torch.cat([torch.zeros(1), (labels[:-1] != IGNORE_INDEX).float()]))
    ones = [torch.ones_like(ids) for ids in rows]
    names = ("input_ids", "attention_mask", "completion_mask")
    return {
        prefix + name: torch.nn.utils.rnn.pad_sequence(values, batch_first=True).long()
        for name, values in zip(names, (rows, ones, masks), strict=True)
    }


@pytest.mark.parametrize("amount", [0.2, -0.2])
@pytest.mark.parametrize(
    ("options", "kind"), [(WEIGHTED, "kto"), ({}, "kto"), (WEIGHTED, "apo_zero_unpaired")]
)
def test_kto_has_the_loss_and_gradients_of_trl(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, float],
    kind: str,
    amount: float,
):
    from datasets import Dataset

    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path / "cache"))
    frozen = random_model(CONFIG, seed=1)
    policy = nearby(frozen, amount)
    folder, policy_folder = save(frozen, tmp_path / "reference"), save(policy, tmp_path / "policy")
    loader = load(build_answers(tmp_path / "answers.jsonl", 6))
    stage = build(folder, loader, loss_type=kind, **options)
    (batch,) = loader.batches(0)
    assert isinstance(batch, UnpairedBatch)
    (ready,) = prepared(stage, policy, [batch])
    loss = stage.loss(policy, ready).total / ready.count

    model, ref_model = (
        transformers.AutoModelForCausalLM.from_pretrained(path, dtype="float32")
        for path in (policy_folder, folder)
    )
    row = {"prompt": "a", "completion": "b", "label": True}
    trainer = trl.KTOTrainer(
        model=model,
        ref_model=ref_model,
        args=trl.KTOConfig(
            output_dir=str(tmp_path / "trl"), beta=0.1, use_cpu=True, report_to=[], bf16=False,
            gradient_checkpointing=False, loss_type=kind, per_device_train_batch_size=2, **options,
        ),
        train_dataset=Dataset.from_list([row, row | {"label": False}]),
        processing_class=transformers.AutoTokenizer.from_pretrained(policy_folder),
    )  # fmt: skip
    inputs = padded_inputs(batch) | padded_inputs(batch.mismatched, "KL_")
    inputs["label"] = batch.meta["label"][batch.unit_ids_P >= 0]
    expected = trainer.compute_loss(model, inputs)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    assert_gradients_of_hf(policy, loss, model)

"""Where TRL is installed (pip install trl): its losses and gradients are ours.

TRL pads each document into a row of its own and runs Hugging Face's model; we pack. So these hold
masks, log-probabilities and references together, not the last formula alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_folders import assert_gradients_of_hf
from labelled_answers import save
from small_models import (
    assert_same_gradients,
    gradients,
    logits_of,
    pack,
    random_documents,
    random_model,
    small_config,
)

from minimind.data.loader import PackedLoader, WeightedSource
from minimind.data.preference_format import PREFERENCE
from minimind.data.token_cache import TokenCache, build_token_cache
from minimind.engine.stage import BuildContext
from minimind.samples.text import load_sample_tokenizer
from minimind.stages.distill import Distill, DistillRecipe
from minimind.stages.dpo import DPO, DPORecipe
from minimind.types import UnitBatch

trl = pytest.importorskip("trl")
transformers = pytest.importorskip("transformers")

TOKENIZER = load_sample_tokenizer()
CONFIG = small_config(vocab_size=TOKENIZER.vocab_size)
BETA, SMOOTHING = 0.3, 0.1

LOSSES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dpo": ({}, {"loss_type": ["sigmoid"]}),
    "length means": ({"length_mean": True}, {"loss_type": ["sigmoid_norm"]}),
    "ipo": ({"loss_type": "ipo", "length_mean": True}, {"loss_type": ["ipo"]}),
    # Its `robust` is ((1 - ε)·right - ε·wrong) / (1 - 2ε), with `sigmoid` for right.
    "label smoothing": (
        {"label_smoothing": SMOOTHING},
        {
            "loss_type": ["sigmoid", "robust"],
            "loss_weights": [2 * (1 - SMOOTHING), -(1 - 2 * SMOOTHING)],
            "label_smoothing": SMOOTHING,
        },
    ),
}
"""Our options, and its."""


pytestmark = pytest.mark.usefixtures("cache_dir")


def build_pairs(path: Path) -> TokenCache:
    rows = []
    for number in range(5):
        question = {"role": "user", "content": f"{number} + 1 = ?"}
        texts = (f"{number + 1} " * (1 + number), "It is " * (5 - number))
        sides = [[question, {"role": "assistant", "content": text}] for text in texts]
        rows.append({"chosen": sides[0], "rejected": sides[1]})
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return build_token_cache(path, TOKENIZER, PREFERENCE)


def padded_inputs(cache: TokenCache) -> dict[str, torch.Tensor]:
    """As TRL's collator builds them: all chosen documents, then all rejected ones."""
    numbers = [*range(0, 10, 2), *range(1, 10, 2)]
    ids = [torch.tensor(cache.tokens(n, 0, 10**6).astype("int64")) for n in numbers]
    masks = [torch.tensor(cache.is_target(n, 0, len(x))) for n, x in zip(numbers, ids, strict=True)]

    def pad(rows: list[torch.Tensor]) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).long()

    ones = [torch.ones_like(x) for x in ids]
    return {"input_ids": pad(ids), "attention_mask": pad(ones), "completion_mask": pad(masks)}


@pytest.mark.parametrize("case", LOSSES)
def test_dpo_has_the_loss_and_gradients_of_trl(case: str, tmp_path: Path):
    from datasets import Dataset

    ours, theirs = LOSSES[case]
    models = {"policy": random_model(CONFIG, seed=2), "reference": random_model(CONFIG, seed=1)}
    hf_models = {}
    for name, model in models.items():
        save(model, tmp_path / name)
        hf_models[name] = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / name, dtype="float32"
        )
    cache = build_pairs(tmp_path / "pairs.jsonl")

    sizes = {"seq_len": 512, "rows_per_step": 1, "micro_batch": 1, "pad_id": 0}
    loader = PackedLoader([WeightedSource(cache)], **sizes)
    stage = DPO(DPORecipe(beta=BETA, **ours))
    stage.build_models(
        BuildContext(config=CONFIG, weights_folder=tmp_path / "reference", loader=loader)
    )
    (batch,) = loader.batches(0)
    assert isinstance(batch, UnitBatch)
    loss = stage.loss(models["policy"], batch)
    assert batch.count == 5

    trainer = trl.DPOTrainer(
        model=hf_models["policy"],
        ref_model=hf_models["reference"],
        args=trl.DPOConfig(
            output_dir=str(tmp_path / "trl"), beta=BETA, use_cpu=True, report_to=[],
            bf16=False, gradient_checkpointing=False, disable_dropout=True, **theirs,
        ),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        processing_class=transformers.AutoTokenizer.from_pretrained(tmp_path / "policy"),
    )  # fmt: skip
    expected = trainer.compute_loss(hf_models["policy"], padded_inputs(cache))
    assert (loss.total / batch.count).item() == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    assert_gradients_of_hf(models["policy"], loss.total / batch.count, hf_models["policy"])


def test_distillation_has_the_divergence_of_trl():
    gkd = pytest.importorskip("trl.experimental.gkd")
    config = small_config()
    student, teacher = random_model(config, seed=1), random_model(config, seed=2)
    batch = pack([random_documents([30, 12, 7])])
    stage = Distill(DistillRecipe(teacher="-", alpha=0.0, temperature=1.5))
    stage.teacher = teacher
    loss = stage.loss(student, batch)
    expected = gkd.GKDTrainer.generalized_jsd_loss(
        logits_of(student, batch), logits_of(teacher, batch).detach(),
        batch.labels_BT.flatten(), beta=0, temperature=1.5, reduction="sum",
    )  # fmt: skip
    assert loss.total.item() == pytest.approx(1.5**2 * expected.item(), rel=1e-5)
    wanted = gradients(student, 1.5**2 * expected)
    assert_same_gradients(gradients(student, loss.total), wanted, 2e-5)

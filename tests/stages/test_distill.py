"""Distillation: its loss and gradient by whole logits, what its teacher is and what it may be."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import (
    assert_same_gradients,
    gradients,
    logits_of,
    pack,
    random_documents,
    random_model,
    reference_logits,
    small_config,
)
from torch import Tensor

from minimind.config.model import ModelConfig
from minimind.config.recipe import replace_fields
from minimind.data.tokenizer import Tokenizer
from minimind.engine.stage import BuildContext
from minimind.errors import CheckpointError, ConfigError, DataError
from minimind.model.state_dict import save_hf_folder
from minimind.model.transformer import Transformer
from minimind.stages.distill import Distill, DistillRecipe
from minimind.stages.pretrain import Pretrain, PretrainRecipe
from minimind.types import IGNORE_INDEX, Batch, HeadFn, ModelOutput

WIDER = {"hidden_size": 48, "head_dim": 8, "num_hidden_layers": 3, "intermediate_size": 64}
DOCUMENTS = random_documents([9, 1, 14, 30])


def distill(teacher: Transformer, **options: Any) -> Distill:
    stage = Distill(DistillRecipe(teacher="given", **options))
    stage.teacher = teacher
    return stage


def check(teacher: Path, context: BuildContext) -> None:
    Distill(DistillRecipe(teacher=str(teacher))).check(context)


def a_student() -> Transformer:
    return random_model(small_config("llama"))


def a_teacher() -> Transformer:
    return random_model(small_config(**WIDER), seed=1)


def a_batch() -> Batch:
    """Targets here and there, as in conversations."""
    batch = pack([DOCUMENTS[:3], DOCUMENTS[3:]], seq_len=40)
    labels_BT = batch.labels_BT.clone()
    labels_BT[:, 3:7] = IGNORE_INDEX
    count = int((labels_BT != IGNORE_INDEX).sum())
    return dataclasses.replace(batch, labels_BT=labels_BT, num_targets=count)


def whole_logits_loss(
    logits_MV: Tensor, teacher_MV: Tensor, batch: Batch, alpha: float, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, cross-entropy, divergence), each summed over the targets, term by term."""
    labels_M = batch.labels_BT.flatten()
    rows = (labels_M != IGNORE_INDEX).nonzero().squeeze(1)
    logits_CV, teacher_CV = logits_MV[rows], teacher_MV[rows].detach()
    ce = -logits_CV.log_softmax(-1).gather(1, labels_M[rows, None]).sum()
    p_CV = (teacher_CV / temperature).softmax(-1)
    q_CV = (logits_CV / temperature).softmax(-1)
    kl = (p_CV * (p_CV / q_CV).log()).sum()
    return alpha * ce + (1 - alpha) * temperature**2 * kl, ce, kl


@pytest.mark.parametrize(("alpha", "temperature"), [(0.5, 1.5), (0.0, 1.0), (1.0, 4.0), (0.2, 0.7)])
def test_loss_and_gradient_are_those_of_whole_logits(alpha: float, temperature: float):
    student, teacher, batch = a_student(), a_teacher(), a_batch()
    loss = distill(teacher, alpha=alpha, temperature=temperature).loss(student, batch)
    expected, ce, kl = whole_logits_loss(
        logits_of(student, batch).double(), logits_of(teacher, batch).double(), batch, alpha,
        temperature,
    )  # fmt: skip
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.metrics["ce"].item() == pytest.approx(ce.item(), rel=1e-5)
    assert loss.metrics["kl"].item() == pytest.approx(kl.item(), rel=1e-5)
    assert not any(value.requires_grad for value in loss.metrics.values())
    wanted = gradients(student, expected)
    assert_same_gradients(gradients(student, loss.total), wanted, 2e-5)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_loss_is_that_of_each_document_alone_in_fp64():
    student, teacher = a_student(), a_teacher()
    batch = pack([DOCUMENTS[:3], DOCUMENTS[3:]], seq_len=40)
    total = 0.0
    for document in DOCUMENTS:
        alone = pack([[document]])
        logits = (reference_logits(model, document) for model in (student, teacher))
        total += whole_logits_loss(*logits, alone, 0.5, 1.5)[0].item()
    loss = distill(teacher).loss(student, batch)
    assert loss.total.item() == pytest.approx(total, rel=1e-5)


def test_a_teacher_may_be_a_mixture_of_experts():
    student, batch = a_student(), a_batch()
    teacher = random_model(
        small_config(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24), seed=1
    ).eval()
    loss = distill(teacher).loss(student, batch)
    expected, *_ = whole_logits_loss(
        logits_of(student, batch).double(), logits_of(teacher, batch).double(), batch, 0.5, 1.5
    )
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.aux_loss is None


def test_alpha_1_is_fine_tuning_and_alpha_0_does_not_see_the_labels():
    student, teacher, batch = a_student(), a_teacher(), a_batch()
    plain = Pretrain(PretrainRecipe()).loss(student, batch)
    loss = distill(teacher, alpha=1.0).loss(student, batch)
    assert loss.total.item() == pytest.approx(plain.total.item(), rel=1e-6)
    expected = gradients(student, plain.total)
    for name, gradient in gradients(student, loss.total).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-6)
    is_target_BT = batch.labels_BT != IGNORE_INDEX
    others = batch.labels_BT.where(~is_target_BT, (batch.labels_BT + 5) % 97)
    soft = distill(teacher, alpha=0.0)
    one, other = (
        soft.loss(student, dataclasses.replace(batch, labels_BT=labels_BT)).total.item()
        for labels_BT in (batch.labels_BT, others)
    )
    assert one == other


def test_a_model_learns_nothing_from_itself():
    student, batch = a_student(), a_batch()
    loss = distill(student, alpha=0.0).loss(student, batch)
    assert abs(loss.metrics["kl"].item()) < 1e-4
    size = loss.metrics["ce"].item()
    for name, gradient in gradients(student, loss.total).items():
        assert gradient.norm() < 1e-5 * size, name


def test_a_batch_without_targets_gives_nothing():
    student = a_student()
    batch = pack([[[5]], [[7]]], seq_len=6)
    loss = distill(a_teacher()).loss(student, batch)
    assert (loss.total.item(), batch.count) == (0.0, 0)
    for name, gradient in gradients(student, loss.total).items():
        assert (gradient == 0).all(), name


def test_the_router_loss_counts_as_the_texts():
    student = a_student()

    def with_router(batch: Batch, head: HeadFn) -> ModelOutput:
        return dataclasses.replace(student(batch, head), aux_loss=torch.tensor(0.8))

    loss = distill(a_teacher(), alpha=0.25).loss(with_router, a_batch())
    assert loss.aux_loss is not None
    assert loss.aux_loss.item() == pytest.approx(0.2)


def test_a_few_steps_come_near_the_teacher():
    student, teacher, batch = a_student(), a_teacher(), a_batch()
    stage = distill(teacher, alpha=0.0)
    before = {name: p.clone() for name, p in teacher.named_parameters()}
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.01)
    divergences = []
    for _ in range(40):
        loss = stage.loss(student, batch)
        divergences.append(loss.metrics["kl"].item() / batch.count)
        optimizer.zero_grad()
        (loss.total / batch.count).backward()
        optimizer.step()
    assert divergences[-1] < 0.1 * divergences[0]
    for name, parameter in teacher.named_parameters():
        assert torch.equal(parameter, before[name])


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """folder(config, tokenizer) -> a Hugging Face folder to be taken as a teacher."""

    def make(config: ModelConfig, tokenizer: Tokenizer | None) -> Path:
        weights = dict(random_model(config).named_parameters())
        save_hf_folder(tmp_path / "teacher", config, weights, torch.float32)
        if tokenizer:
            tokenizer.save(tmp_path / "teacher")
        return tmp_path / "teacher"

    return make


def context(tokenizer: Tokenizer, vocab_size: int | None = None, **changes: Any) -> BuildContext:
    config = small_config(vocab_size=vocab_size or tokenizer.vocab_size)
    return BuildContext(config=config, tokenizer=tokenizer, **changes)


def test_the_teacher_is_frozen_beside_the_student(folder: Callable[..., Path], tokenizer):
    path = folder(small_config(vocab_size=tokenizer.vocab_size, dropout=0.1, **WIDER), tokenizer)
    stage = Distill(DistillRecipe(teacher=str(path)))
    models = stage.build_models(context(tokenizer, dtype=torch.bfloat16))
    assert models.helpers == (stage.teacher,)
    assert not stage.teacher.training
    for parameter in stage.teacher.parameters():
        assert parameter.dtype == torch.bfloat16
        assert not parameter.requires_grad
    assert all(parameter.requires_grad for parameter in models.policy.parameters())
    trained = {id(parameter) for parameter in models.policy.parameters()}
    assert not trained & {id(parameter) for parameter in stage.teacher.parameters()}


def test_a_teacher_of_shorter_contexts_is_refused(folder: Callable[..., Path], tokenizer):
    shape = {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": 64}
    path = folder(small_config(**shape), tokenizer)
    Distill(DistillRecipe(teacher=str(path), seq_len=64)).build_models(context(tokenizer))
    with pytest.raises(ConfigError, match="seq_len 65 is beyond the max_position_embeddings 64"):
        Distill(DistillRecipe(teacher=str(path), seq_len=65)).build_models(context(tokenizer))


def changed_tokenizer(tokenizer: Tokenizer, change: Callable[[dict[str, Any]], None]) -> Tokenizer:
    spec = json.loads(json.dumps(tokenizer._spec))
    change(spec)
    return Tokenizer(spec, tokenizer._config, "changed")


def test_a_teacher_of_other_tokens_is_refused(folder: Callable[..., Path], tokenizer: Tokenizer):
    path = folder(small_config(vocab_size=2000), tokenizer)
    with pytest.raises(ConfigError, match=r"teacher has a vocabulary of 2000, the student one of"):
        check(path, context(tokenizer))
    check(path, context(tokenizer, vocab_size=2000))

    def swap(spec: dict[str, Any]) -> None:
        vocab = spec["model"]["vocab"]
        last = sorted(vocab, key=vocab.__getitem__)[-2:]
        vocab[last[0]], vocab[last[1]] = vocab[last[1]], vocab[last[0]]

    path = folder(small_config(vocab_size=2000), changed_tokenizer(tokenizer, swap))
    with pytest.raises(ConfigError, match=rf"token {tokenizer.vocab_size - 2} is .* the student's"):
        check(path, context(tokenizer, vocab_size=2000))


def test_a_student_that_is_its_own_teacher_needs_the_text(
    folder: Callable[..., Path], tokenizer: Tokenizer
):
    path = folder(small_config(vocab_size=tokenizer.vocab_size), tokenizer)
    start = context(tokenizer, weights_folder=path)
    Distill(DistillRecipe(teacher=str(path), alpha=0.1)).check(start)
    with pytest.raises(ConfigError, match="they agree already, and nothing would be learned"):
        Distill(DistillRecipe(teacher=str(path), alpha=0.0)).check(start)


def test_a_folder_that_is_no_teacher_is_named(
    folder: Callable[..., Path], tmp_path: Path, tokenizer
):
    with pytest.raises(CheckpointError, match="nowhere"):
        check(tmp_path / "nowhere", context(tokenizer))
    path = folder(small_config(vocab_size=tokenizer.vocab_size), None)
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        check(path, context(tokenizer))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"teacher": None}, "--set teacher=FOLDER"),
        ({"alpha": 1.5}, "alpha is 1.5; it must be from 0 to 1"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be above 0"),
    ],
)
def test_options_out_of_range_are_named(values: dict[str, Any], words: str):
    recipe = DistillRecipe(learning_rate=1e-3, teacher="somewhere")
    recipe.check()
    with pytest.raises(ConfigError, match=words):
        replace_fields(recipe, values, "test").check()

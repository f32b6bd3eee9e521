"""Kahneman-Tversky optimisation: the loss against a plain implementation and against TRL's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers
import trl
from fake_engine import FakeEngine
from small_models import gradients, logits_of, pack, random_model, small_config
from torch import Tensor

from minimind.data.loader import EvalLoader, PackedLoader, WeightedSource
from minimind.data.sample_text import load_sample_tokenizer
from minimind.data.token_cache import TokenCache, build_token_cache
from minimind.data.unpaired_format import UNPAIRED, UnpairedBatch
from minimind.engine.deepspeed_engine import DeepSpeedEngine
from minimind.engine.stage import BuildContext
from minimind.errors import ConfigError
from minimind.model.state_dict import save_hf_folder, split_fused
from minimind.model.transformer import Transformer
from minimind.runtime.ranks import Ranks
from minimind.stages.kto import KTO, KTOBatch, KTORecipe
from minimind.types import IGNORE_INDEX, LossSum, UnitBatch

TOKENIZER = load_sample_tokenizer()
CONFIG = small_config(vocab_size=TOKENIZER.vocab_size)
SEQ_LEN = 256
WEIGHTED = {"desirable_weight": 0.7, "undesirable_weight": 1.3}


class PolicyEngine(FakeEngine):
    """A fake engine that a stage can call."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.module(*arguments, **options)


@pytest.fixture(autouse=True)
def _cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def answers(tmp_path: Path) -> Callable[..., TokenCache]:
    """answers(count) -> their cache; two of three are good."""

    def make(count: int, name: str = "answers") -> TokenCache:
        rows = []
        for number in range(count):
            texts = (f"{name} {number} + 1 = ?", f"It is {number + 1}. " * (1 + number % 4))
            turns = zip(("user", "assistant"), texts, strict=True)
            conversation = [{"role": role, "content": text} for role, text in turns]
            rows.append({"conversations": conversation, "label": number % 3 > 0})
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return build_token_cache(path, TOKENIZER, UNPAIRED)

    return make


@pytest.fixture
def reference(tmp_path: Path) -> tuple[Transformer, Path]:
    """Weights to start from, and the folder they are in."""
    return _saved(random_model(CONFIG, seed=1), tmp_path / "reference")


def _saved(model: Transformer, folder: Path) -> tuple[Transformer, Path]:
    weights = {name: p.detach() for name, p in model.named_parameters()}
    save_hf_folder(folder, CONFIG, weights, torch.float32)
    TOKENIZER.save(folder)
    return model, folder


def load(cache: TokenCache, micro_batch: int = 1, **options: int) -> PackedLoader:
    sizes: dict[str, Any] = {"rows_per_step": micro_batch, "micro_batch": micro_batch}
    return PackedLoader([WeightedSource(cache)], seq_len=SEQ_LEN, pad_id=0, **(sizes | options))


def build(folder: Path, loader: PackedLoader, **options: Any) -> KTO:
    stage = KTO(KTORecipe(**options))
    stage.build_models(BuildContext(config=CONFIG, weights_folder=folder, loader=loader))
    return stage


def prepared(stage: KTO, policy: Transformer, batches: list[Any], world_size: int = 1):
    """What a step of these micro-batches is computed from."""
    engine = PolicyEngine(Ranks(0, 0, world_size), module=policy)
    (found,) = stage.prepare(cast(DeepSpeedEngine, engine), batches)
    assert engine.training
    return found


def plain_log_probs(model: Transformer, batch: UnitBatch) -> Tensor:
    """fp64 [units]: by a forward of its own for each document."""
    found = []
    for place in (batch.unit_ids_P >= 0).nonzero().flatten().tolist():
        ids = batch.ids_BT.flatten()[batch.doc_M == place]
        labels = batch.labels_BT.flatten()[batch.doc_M == place]
        log_probs = logits_of(model, pack([[ids.tolist()]])).double().log_softmax(-1)
        at = (labels != IGNORE_INDEX).nonzero().flatten()
        found.append(log_probs[at, labels[at]].sum())
    return torch.stack(found)


def plain_loss(
    policy: Transformer, frozen: Transformer, batch: UnpairedBatch, options: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """(the sum of the losses, z, r of each answer), as the papers have them."""
    with torch.no_grad():
        ref, ref_other = (plain_log_probs(frozen, b) for b in (batch, batch.mismatched))
        z = (plain_log_probs(policy, batch.mismatched) - ref_other).mean().clamp(min=0)
    if options.get("loss_type") == "apo_zero_unpaired":
        z = torch.zeros(())
    r = plain_log_probs(policy, batch) - ref
    is_good = batch.meta["label"][batch.unit_ids_P >= 0]
    beta = options.get("beta", 0.1)
    good = options.get("desirable_weight", 1.0) * (1 - torch.sigmoid(beta * (r - z)))
    bad = options.get("undesirable_weight", 1.0) * (1 - torch.sigmoid(beta * (z - r)))
    return torch.where(is_good, good, bad).sum(), z, r


def nearby(model: Transformer, amount: float) -> Transformer:
    """A policy that has moved a little from its reference: z is above 0 for one that likes the
    mismatched answers better."""
    moved = random_model(CONFIG, seed=4)
    other = dict(random_model(CONFIG, seed=3).named_parameters())
    with torch.no_grad():
        for (name, p), q in zip(moved.named_parameters(), model.parameters(), strict=True):
            p.copy_(q + amount * (other[name] - q))
    return moved


@pytest.mark.parametrize("amount", [0.2, -0.2])
@pytest.mark.parametrize(
    "options",
    [{}, {"beta": 0.4, **WEIGHTED}, {"loss_type": "apo_zero_unpaired", **WEIGHTED}],
    ids=["kto", "weighted", "apo zero"],
)
def test_loss_and_gradients_are_those_of_separate_forwards(
    answers: Callable[..., TokenCache],
    reference: tuple[Transformer, Path],
    options: dict[str, Any],
    amount: float,
):
    frozen, folder = reference
    loader = load(answers(9), micro_batch=2)
    stage = build(folder, loader, **options)
    policy = nearby(frozen, amount)
    (batch,) = loader.batches(0)
    assert isinstance(batch, UnpairedBatch)
    (ready,) = prepared(stage, policy, [batch])
    loss = stage.loss(policy, ready)
    exact = Transformer(CONFIG)
    exact.load_named(dict(policy.named_parameters()))
    expected, z, r = plain_loss(exact.double(), frozen, batch, options)
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert ready.kl.item() == pytest.approx(z.item(), rel=1e-4, abs=1e-5)
    wanted = gradients(exact, expected)
    for name, gradient in gradients(policy, loss.total).items():
        error = (gradient - wanted[name]).norm() / wanted[name].norm()
        assert error < 1e-4, name
    is_good = batch.meta["label"][batch.unit_ids_P >= 0]
    for name, of_kind in (("good_reward", is_good), ("bad_reward", ~is_good)):
        mean = loss.metrics[name].item() / batch.count
        assert mean == pytest.approx(options.get("beta", 0.1) * r[of_kind].mean().item(), rel=1e-4)


def test_the_baseline_is_above_zero_in_one_of_these_cases(
    answers: Callable[..., TokenCache], reference: tuple[Transformer, Path]
):
    """Else the test above would not show what is done with it."""
    frozen, folder = reference
    loader = load(answers(9), micro_batch=2)
    stage = build(folder, loader)
    drifts = [
        prepared(stage, nearby(frozen, amount), list(loader.batches(0)))[0].kl.item()
        for amount in (0.2, -0.2)
    ]
    assert max(drifts) > 0.1
    assert min(drifts) >= 0.0


def test_the_first_step_has_loss_one_half(
    answers: Callable[..., TokenCache], reference: tuple[Transformer, Path]
):
    model, folder = reference
    loader = load(answers(20))
    stage = build(folder, loader)
    for batch in loader.all_batches():
        (ready,) = prepared(stage, model, [batch])
        assert ready.kl.item() == pytest.approx(0.0, abs=1e-5)
        loss = stage.loss(model, ready)
        assert loss.total.item() == pytest.approx(0.5 * batch.count, rel=1e-5)


def test_a_step_is_the_same_however_it_is_divided(
    answers: Callable[..., TokenCache], reference: tuple[Transformer, Path]
):
    """One micro-batch, several, or those of another rank beside them: z is the whole step's."""
    frozen, folder = reference
    cache = answers(24)
    whole = load(cache, micro_batch=4)
    stage, policy = build(folder, whole), nearby(frozen, 0.2)

    def total(losses: list[LossSum]) -> list[float]:
        return [
            sum(loss.total.item() for loss in losses),
            *(sum(loss.metrics[name].item() for loss in losses) for name in stage.metric_names),
        ]

    (together,) = prepared(stage, policy, list(whole.batches(0)))
    expected = total([stage.loss(policy, together)])
    parts = load(cache, 1, rows_per_step=4).batches(0)
    several = prepared(stage, policy, list(parts))
    assert total([stage.loss(policy, part) for part in several]) == pytest.approx(
        expected, rel=1e-5
    )
    # A rank whose like says the same doubles every sum, which leaves their ratios alone.
    (doubled,) = prepared(stage, policy, list(whole.batches(0)), world_size=2)
    assert doubled.kl.item() == together.kl.item() > 0


def test_validation_takes_its_baseline_from_the_batch(
    answers: Callable[..., TokenCache], reference: tuple[Transformer, Path]
):
    frozen, folder = reference
    loader = load(answers(9))
    evaluation = EvalLoader(
        [WeightedSource(answers(6, "val"))],
        seq_len=SEQ_LEN, micro_batch=2, pad_id=0, first_unit=loader.num_units,
    )  # fmt: skip
    stage = KTO(KTORecipe())
    stage.build_models(
        BuildContext(config=CONFIG, weights_folder=folder, loader=loader, eval_data=evaluation)
    )
    policy = nearby(frozen, 0.2)
    for batch in evaluation:
        assert isinstance(batch, UnpairedBatch)
        expected, _, _ = plain_loss(policy, frozen, batch, {})
        assert stage.evaluate(policy, batch).total.item() == pytest.approx(
            expected.item(), rel=1e-5
        )


def test_a_batch_of_padding_alone_gives_nothing(
    answers: Callable[..., TokenCache], reference: tuple[Transformer, Path]
):
    model, folder = reference
    loader = load(answers(3))
    stage = build(folder, loader)
    batch = loader._rows.batch([], 2)
    (ready,) = prepared(stage, model, [batch])
    assert isinstance(ready, KTOBatch)
    loss = stage.loss(model, ready)
    assert (loss.total.item(), ready.count, ready.kl.item()) == (0.0, 0, 0.0)
    assert all((gradient == 0).all() for gradient in gradients(model, loss.total).values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "dpo"}, "loss_type is 'dpo'; it must be one of kto, apo_zero_unpaired"),
        ({"beta": 0.0}, "beta is 0.0; it must be above 0"),
        ({"undesirable_weight": -1.0}, "undesirable_weight is -1.0; it must be at least 0"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        KTORecipe(**options).check()


def test_without_weights_there_is_nothing_to_compare_with():
    with pytest.raises(ConfigError, match="--from_checkpoint none has none: give a checkpoint"):
        KTO(KTORecipe()).build_models(BuildContext(config=CONFIG))


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
    answers: Callable[..., TokenCache],
    reference: tuple[Transformer, Path],
    tmp_path: Path,
    options: dict[str, float],
    kind: str,
    amount: float,
):
    from datasets import Dataset

    frozen, folder = reference
    policy, policy_folder = _saved(nearby(frozen, amount), tmp_path / "policy")
    loader = load(answers(6))
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
    found = split_fused(CONFIG, gradients(policy, loss))
    wanted = {name: p.grad for name, p in model.named_parameters()}
    assert found.keys() - {"lm_head.weight"} == wanted.keys() - {"lm_head.weight"}
    for name, gradient in found.items():
        if name in wanted:
            error = (gradient - wanted[name]).norm() / wanted[name].norm()
            assert error < 1e-4, name

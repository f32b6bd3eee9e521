"""Kahneman-Tversky optimisation: the loss against a plain implementation, and its baseline."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from labelled_answers import (
    CONFIG,
    SEQ_LEN,
    WEIGHTED,
    build,
    build_answers,
    engine_of,
    load,
    nearby,
    prepared,
    save,
)
from small_models import assert_same_gradients, double, gradients, logits_of, pack, random_model
from torch import Tensor

from minimind.data.loader import EvalLoader, WeightedSource
from minimind.data.token_cache import TokenCache
from minimind.data.unpaired_format import UnpairedBatch
from minimind.engine.stage import BuildContext
from minimind.errors import ConfigError
from minimind.model.transformer import Transformer
from minimind.stages.kto import KTO, KTOBatch, KTORecipe
from minimind.types import IGNORE_INDEX, LossSum, UnitBatch

Answers = Callable[..., TokenCache]
pytestmark = pytest.mark.usefixtures("cache_dir")


@pytest.fixture
def answers(tmp_path: Path) -> Answers:
    """answers(count) -> their cache; two of three are good."""
    return lambda count, name="answers", **more: build_answers(
        tmp_path / f"{name}.jsonl", count, name, **more
    )


@pytest.fixture
def reference(tmp_path: Path) -> tuple[Transformer, Path]:
    """Weights to start from, and the folder they are in."""
    model = random_model(CONFIG, seed=2)
    return model, save(model, tmp_path / "reference")


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


@pytest.mark.parametrize("amount", [0.2, -0.2])
@pytest.mark.parametrize(
    "options",
    [{}, {"beta": 0.4, **WEIGHTED}, {"loss_type": "apo_zero_unpaired", **WEIGHTED}],
    ids=["kto", "weighted", "apo zero"],
)
def test_loss_and_gradients_are_those_of_separate_forwards(
    answers: Answers, reference: tuple[Transformer, Path], options: dict[str, Any], amount: float
):
    frozen, folder = reference
    loader = load(answers(9), micro_batch=2)
    stage = build(folder, loader, **options)
    policy = nearby(frozen, amount)
    (batch,) = loader.batches(0)
    assert isinstance(batch, UnpairedBatch)
    (ready,) = prepared(stage, policy, [batch])
    loss = stage.loss(policy, ready)
    exact = double(policy)
    expected, z, r = plain_loss(exact, frozen, batch, options)
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert ready.kl.item() == pytest.approx(z.item(), rel=1e-4, abs=1e-5)
    assert_same_gradients(gradients(policy, loss.total), gradients(exact, expected))
    is_good = batch.meta["label"][batch.unit_ids_P >= 0]
    for name, of_kind in (("good_reward", is_good), ("bad_reward", ~is_good)):
        mean = loss.metrics[name].item() / batch.count
        assert mean == pytest.approx(options.get("beta", 0.1) * r[of_kind].mean().item(), rel=1e-4)


def test_the_baseline_is_above_zero_in_one_of_these_cases(
    answers: Answers, reference: tuple[Transformer, Path]
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


def test_the_first_step_has_loss_one_half(answers: Answers, reference: tuple[Transformer, Path]):
    model, folder = reference
    loader = load(answers(20))
    stage = build(folder, loader)
    for batch in loader.all_batches():
        (ready,) = prepared(stage, model, [batch])
        assert ready.kl.item() == pytest.approx(0.0, abs=1e-5)
        loss = stage.loss(model, ready)
        assert loss.total.item() == pytest.approx(0.5 * batch.count, rel=1e-5)


def test_a_step_is_the_same_however_it_is_divided(
    answers: Answers, reference: tuple[Transformer, Path]
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


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_validation_has_one_baseline_whatever_its_micro_batches(
    answers: Answers, reference: tuple[Transformer, Path], micro_batch: int
):
    frozen, folder = reference
    loader, val = load(answers(9)), answers(30, "val")
    sizes: dict[str, Any] = {"seq_len": SEQ_LEN, "pad_id": 0, "first_unit": loader.num_units}
    evaluation = EvalLoader([WeightedSource(val)], micro_batch=micro_batch, **sizes)
    stage = KTO(KTORecipe())
    stage.build_models(
        BuildContext(config=CONFIG, weights_folder=folder, loader=loader, eval_data=evaluation)
    )
    policy = nearby(frozen, 0.2)
    found = list(stage.evaluate(engine_of(policy), evaluation))
    (whole,) = EvalLoader([WeightedSource(val)], micro_batch=len(evaluation) * micro_batch, **sizes)
    assert isinstance(whole, UnpairedBatch)
    expected, z, _ = plain_loss(policy, frozen, whole, {})
    assert z > 0
    assert sum(batch.count for batch, _ in found) == 30
    assert sum(loss.total.item() for _, loss in found) == pytest.approx(expected.item(), rel=1e-5)


def test_a_batch_of_padding_alone_gives_nothing(
    answers: Answers, reference: tuple[Transformer, Path]
):
    model, folder = reference
    loader = load(answers(3))
    stage = build(folder, loader)
    batch = loader.rows.batch([], 2)
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
    with pytest.raises(ConfigError, match="--from_checkpoint none gives none: give a checkpoint"):
        KTO(KTORecipe()).build_models(BuildContext(config=CONFIG))


def test_a_step_without_bad_answers_says_nothing_of_them(
    answers: Answers, reference: tuple[Transformer, Path], caplog: pytest.LogCaptureFixture
):
    frozen, folder = reference
    loader = load(answers(6, good=(0, 1, 2)))
    stage = build(folder, loader)
    stage.check_data(loader.all_batches())
    assert "all answers are good: nothing says what to tell them from; add" in caplog.text
    (ready,) = prepared(stage, nearby(frozen, 0.2), list(loader.batches(0)))
    metrics = stage.loss(frozen, ready).metrics
    assert math.isnan(metrics["bad_reward"].item())
    assert math.isfinite(metrics["good_reward"].item())


def test_rows_with_one_answer_each_have_no_baseline(answers: Answers):
    loader = load(answers(4), seq_len=40)
    with pytest.raises(ConfigError, match=r"no row holds two different answers: .*apo_zero_unp"):
        KTO(KTORecipe()).check_data(loader.all_batches())
    KTO(KTORecipe(loss_type="apo_zero_unpaired")).check_data(loader.all_batches())
    KTO(KTORecipe()).check_data(load(answers(12), seq_len=256).all_batches())


def test_answers_that_have_no_weight_teach_nothing(answers: Answers):
    batches = list(load(answers(12), seq_len=256).all_batches())
    for batch in batches:
        batch.meta["label"].fill_(True)
    KTO(KTORecipe(undesirable_weight=0.0)).check_data(batches)
    with pytest.raises(ConfigError, match="there are only answers of weight 0"):
        KTO(KTORecipe(desirable_weight=0.0)).check_data(batches)
    with pytest.raises(ConfigError, match="no answer would teach anything"):
        KTORecipe(desirable_weight=0.0, undesirable_weight=0.0, learning_rate=1.0).check()


def test_few_answers_with_another_one_are_warned_of(
    answers: Answers, reference: tuple[Transformer, Path], caplog: pytest.LogCaptureFixture
):
    _, folder = reference
    build(folder, load(answers(12), seq_len=64))
    assert re.search(r"only \d\d% of the answers share a packed row", caplog.text)

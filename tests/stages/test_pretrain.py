"""Pretraining: what it sums, what it counts, what it trains."""

from __future__ import annotations

import math

import pytest
import torch
from small_models import (
    assert_same_gradients,
    gradients,
    logits_of,
    pack,
    random_documents,
    random_model,
    small_config,
)
from stage_options import REQUIRED_OPTIONS

from minimind.config.recipe import Recipe
from minimind.engine.stage import BuildContext
from minimind.model.transformer import Transformer
from minimind.stages import STAGES
from minimind.stages.pretrain import Pretrain, PretrainRecipe
from minimind.types import IGNORE_INDEX, Batch


def stage(**options: object) -> Pretrain:
    return Pretrain(PretrainRecipe(**options))  # type: ignore[arg-type]


def mean_cross_entropy(model: Transformer, batch: Batch) -> tuple[float, int]:
    """Token by token, from the logits: −log of the next token's share."""
    losses = []
    with torch.no_grad():
        logits_MV = logits_of(model, batch).double()
    for logits_V, label in zip(logits_MV, batch.labels_BT.flatten().tolist(), strict=True):
        if label != IGNORE_INDEX:
            losses.append(math.log(logits_V.exp().sum()) - logits_V[label].item())
    return sum(losses) / len(losses), len(losses)


def test_the_loss_is_the_cross_entropy_of_the_next_token():
    model = random_model(small_config())
    documents = random_documents([9, 1, 14, 30])
    batch = pack([documents[:3], documents[3:]], seq_len=40)
    mean, count = mean_cross_entropy(model, batch)
    loss = stage().loss(model, batch)
    assert batch.count == count == 8 + 0 + 13 + 29
    assert loss.total.item() / batch.count == pytest.approx(mean, rel=1e-5)
    assert loss.total.dtype == torch.float32
    assert dict(loss.metrics) == {}


def test_the_gradient_is_that_of_the_sum():
    model = random_model(small_config())
    batch = pack([random_documents([9, 14])])
    found = gradients(model, stage().loss(model, batch).total * 0.25)
    logits_MV = logits_of(model, batch)
    labels = batch.labels_BT.flatten()
    kept = labels != IGNORE_INDEX
    plain = -logits_MV.log_softmax(-1)[kept].gather(1, labels[kept, None]).sum() * 0.25
    assert_same_gradients(found, gradients(model, plain), 2e-5)


def test_sums_of_parts_are_the_sum_of_the_whole():
    """What lets the engine divide once, however rows fall into micro-batches and ranks."""
    model = random_model(small_config())
    documents = random_documents([3, 25, 11, 7])
    batch, batches = pack([[d] for d in documents], seq_len=25), [pack([[d]]) for d in documents]
    assert sum(part.count for part in batches) == batch.count
    whole = stage().loss(model, batch)
    parts = [stage().loss(model, part) for part in batches]
    total = sum(part.total.item() for part in parts)
    assert whole.total.item() == pytest.approx(total, rel=1e-5)


def test_a_batch_without_targets_gives_nothing():
    """A rank's share may be padding alone."""
    model = random_model(small_config())
    batch = pack([[[5]], [[7]]], seq_len=6)
    loss = stage().loss(model, batch)
    assert (loss.total.item(), batch.count) == (0.0, 0)
    for name, gradient in gradients(model, loss.total).items():
        assert (gradient == 0).all(), name


def test_fresh_models_follow_the_seed():
    config = small_config()
    one, again, other = (
        dict(stage(seed=seed).build_models(BuildContext(config=config)).policy.named_parameters())
        for seed in (3, 3, 4)
    )
    name = "embed_tokens.weight"
    assert torch.equal(one[name], again[name])
    assert not torch.equal(one[name], other[name])
    assert one[name].std().item() == pytest.approx(0.02, rel=0.1)


def test_models_start_from_given_weights():
    source = random_model(small_config())
    weights = {name: p.detach() for name, p in source.named_parameters()}
    models = stage(activation_checkpointing=True).build_models(
        BuildContext(config=source.config, weights=weights)
    )
    policy = models.policy
    assert isinstance(policy, Transformer)
    assert policy.activation_checkpointing
    assert models.helpers == ()
    for name, parameter in policy.named_parameters():
        assert torch.equal(parameter, weights[name])
        assert parameter.requires_grad


def test_a_step_is_the_batches_it_is_given():
    batches = [pack([[d]]) for d in random_documents([3, 4])]
    (prepared,) = stage().prepare(random_model(small_config()), batches, 0)
    assert prepared == batches


def test_a_few_steps_learn_a_sentence():
    model = stage(seed=1).build_models(BuildContext(config=small_config())).policy
    batch = pack([random_documents([12])])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        loss = stage().loss(model, batch)
        losses.append(loss.total.item() / batch.count)
        optimizer.zero_grad()
        (loss.total / batch.count).backward()
        optimizer.step()
    assert losses[0] == pytest.approx(math.log(97), abs=0.3)
    assert losses[-1] < 0.5


def test_every_stage_says_what_it_is():
    for name, kind in STAGES.items():
        assert kind.name == name
        assert issubclass(kind.recipe_type, Recipe)
        assert "" in kind.recipe_type.learning_rates
        kind.recipe_type(learning_rate=1e-3, **REQUIRED_OPTIONS.get(name, {})).check()
    rates = {name: PretrainRecipe(optimizer=name).usual_rates[""] for name in ("AdamW", "Muon")}
    assert rates["AdamW"] == 5e-4
    assert rates["Muon"] != rates["AdamW"]
    assert not STAGES["pretrain"].needs_checkpoint

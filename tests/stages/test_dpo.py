"""Preference optimisation: the loss against a plain implementation, and where its reference comes
from."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from labelled_answers import save
from plain_dpo import (
    CONFIG,
    SEQ_LEN,
    TOKENIZER,
    Cache,
    context,
    first_batch,
    load,
    plain_log_probs,
    plain_loss,
    used_places,
)
from small_models import assert_same_gradients, double, gradients, random_model
from torch import Tensor

from minimind.data import preference_format
from minimind.data.loader import EvalLoader, WeightedSource
from minimind.data.preference_format import PREFERENCE
from minimind.data.token_cache import TokenCache, build_token_cache
from minimind.engine.stage import BuildContext
from minimind.errors import ConfigError
from minimind.model.transformer import Transformer
from minimind.stages import reference as reference_module
from minimind.stages.dpo import DPO, DPORecipe
from minimind.types import UnitBatch

pytestmark = pytest.mark.usefixtures("cache_dir")


@pytest.fixture
def pairs(tmp_path: Path) -> Cache:
    """pairs(count, name) -> their cache; the last pair does not fit a row."""

    def make(count: int, name: str = "pairs") -> TokenCache:
        rows = []
        for number in range(count):
            words = (1 + number % 4, 1 + number % 3 if number < count - 1 else 40)
            texts = [f"{side}{number} " * n for side, n in zip("ab", words, strict=True)]
            question = {"role": "user", "content": f"{name} {number}?"}
            sides = [[question, {"role": "assistant", "content": text}] for text in texts]
            rows.append({"chosen": sides[0], "rejected": sides[1]})
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return build_token_cache(path, TOKENIZER, PREFERENCE)

    return make


@pytest.fixture
def start(tmp_path: Path) -> tuple[Transformer, Path]:
    """Weights, and the folder they are in."""
    model = random_model(CONFIG, seed=1)
    return model, save(model, tmp_path / "weights")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beta": 0.5, "label_smoothing": 0.1},
        {"length_mean": True, "beta": 2.0},
        {"loss_type": "ipo", "beta": 0.3},
        {"loss_type": "ipo", "length_mean": True},
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.3},
        {"loss_type": "orpo", "beta": 0.4},
    ],
    ids=lambda options: "-".join(map(str, options.values())) or "dpo",
)
def test_loss_and_gradients_are_those_of_separate_padded_forwards(
    pairs: Cache, start: tuple[Transformer, Path], options: dict[str, Any]
):
    frozen, folder = start
    cache = pairs(8)
    loader = load(cache, micro_batch=4)
    stage = DPO(DPORecipe(**options))
    stage.build_models(context(folder, loader))
    policy = random_model(CONFIG, seed=2)
    batch = first_batch(loader)
    loss = stage.loss(policy, batch)
    assert batch.count == len(used_places(batch)) > 4

    exact, reference = double(policy), double(frozen)
    c, r = plain_log_probs(exact, loader, batch)
    with torch.no_grad():
        ref_c, ref_r = plain_log_probs(reference, loader, batch)
    expected = plain_loss(c, r, ref_c, ref_r, options)
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-4)
    assert_same_gradients(gradients(policy, loss.total), gradients(exact, expected))

    if not options:
        margin = 0.15 * ((c - ref_c) - (r - ref_r))[:, 0]
        assert loss.metrics["reward_margin"].item() == pytest.approx(margin.sum().item(), rel=1e-4)
        assert loss.metrics["reward_accuracy"].item() == int((margin > 0).sum())
        for name, sums in (("chosen", c), ("rejected", r)):
            value = loss.metrics[f"{name}_log_prob"]
            assert value.item() == pytest.approx(sums[:, 0].sum().item(), rel=1e-5)
            assert not value.requires_grad


def test_the_first_step_has_loss_log_2_and_no_margin(pairs: Cache, start: tuple[Transformer, Path]):
    model, folder = start
    loader = load(pairs(9))
    stage = DPO(DPORecipe(learning_rate=1.0))
    stage.build_models(context(folder, loader))
    for batch in loader.all_batches():
        assert isinstance(batch, UnitBatch)
        loss = stage.loss(model, batch)
        assert loss.total.item() == pytest.approx(batch.num_units * math.log(2), rel=1e-5)
        assert loss.metrics["reward_margin"].item() == pytest.approx(0.0, abs=1e-5)


def test_pairs_count_alike_wherever_they_stand(pairs: Cache, start: tuple[Transformer, Path]):
    """Sums over micro-batches and ranks are the sums over one large batch."""
    _, folder = start
    cache = pairs(23)
    stage = DPO(DPORecipe())
    whole = load(cache, micro_batch=4, rows_per_step=4)
    stage.build_models(context(folder, whole))
    policy = random_model(CONFIG, seed=2)
    (batch,) = whole.batches(0)
    batches = [
        part
        for rank in (0, 1)
        for part in load(cache, 1, rows_per_step=4, rank=rank, world_size=2).batches(0)
    ]
    assert sum(part.count for part in batches) == batch.count
    together = stage.loss(policy, batch)  # type: ignore[arg-type]
    parts = [stage.loss(policy, part) for part in batches]  # type: ignore[arg-type]
    for value in (lambda x: x.total, lambda x: x.metrics["reward_margin"]):
        total = sum(value(part).item() for part in parts)
        assert value(together).item() == pytest.approx(total, rel=1e-4)


def test_a_batch_of_padding_alone_gives_nothing(pairs: Cache, start: tuple[Transformer, Path]):
    model, folder = start
    loader = load(pairs(3))
    stage = DPO(DPORecipe())
    stage.build_models(context(folder, loader))
    batch = loader.rows.batch([], 2)
    assert isinstance(batch, UnitBatch)
    loss = stage.loss(model, batch)
    assert (loss.total.item(), batch.count) == (0.0, 0)
    assert all((gradient == 0).all() for gradient in gradients(model, loss.total).values())


def test_a_pair_that_lost_one_answer_leaves_the_others_gradient_alone(
    tmp_path: Path, start: tuple[Transformer, Path], monkeypatch: pytest.MonkeyPatch
):
    """Its place is free, though the other answer's targets stand there; being the longest it is
    unit 0, which no reference was computed for. With one prompt both answers would be lost, so two
    are let through."""
    monkeypatch.setattr(preference_format, "_check_one_prompt", lambda *_: None)
    _, folder = start
    rows = []
    for number in range(4):
        turns = [{"role": "user", "content": f"why why {number}?"}]
        sides = [[*turns, {"role": "assistant", "content": f"{side}{number}"}] for side in "ab"]
        rows.append({"chosen": sides[0], "rejected": sides[1]})
    rows[2]["rejected"][0] = {"role": "user", "content": "why " * SEQ_LEN}
    path = tmp_path / "cut.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    loader = load(build_token_cache(path, TOKENIZER, PREFERENCE), micro_batch=3)
    stage = DPO(DPORecipe())
    stage.build_models(context(folder, loader))
    assert stage.reference is not None
    assert stage.reference.values[0].isnan().all(), "the pair that is cut"
    policy = random_model(CONFIG, seed=2)
    batch = first_batch(loader)
    assert batch.count == 3
    assert batch.num_targets > 6, "some stand in a free place"
    loss = stage.loss(policy, batch)
    for name, gradient in gradients(policy, loss.total).items():
        assert gradient.isfinite().all(), name


def test_the_reference_is_computed_once(
    pairs: Cache, start: tuple[Transformer, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    model, folder = start
    loader = load(pairs(9))
    evaluation = EvalLoader(
        [WeightedSource(pairs(4, "val"))],
        seq_len=SEQ_LEN,
        micro_batch=2,
        pad_id=0,
        first_unit=loader.num_units,
    )
    computed = []
    whole = reference_module._compute

    def counting(*arguments: Any):
        computed.append(1)
        return whole(*arguments)

    monkeypatch.setattr(reference_module, "_compute", counting)

    def build(**more: Any) -> Tensor:
        stage = DPO(DPORecipe())
        models = stage.build_models(context(folder, loader, evaluation, **more))
        assert models.helpers == ()
        assert stage.reference is not None
        return stage.reference.values

    first = build()
    assert first.shape == (13, 2)
    assert torch.isfinite(first).all()
    assert len(computed) == 2
    with monkeypatch.context() as patch:
        patch.setattr(reference_module, "load_frozen", None)
        assert torch.equal(build(), first)
    assert len(computed) == 2

    # A validation batch finds its own values.
    stage = DPO(DPORecipe())
    stage.build_models(context(folder, loader, evaluation))
    for batch in evaluation:
        assert isinstance(batch, UnitBatch)
        loss = stage.loss(model, batch)
        assert loss.metrics["reward_margin"].item() == pytest.approx(0.0, abs=1e-5)

    # What was lost, damaged, or made by other weights or in another precision is computed.
    files = sorted((tmp_path / "cache" / "reference").glob("*/log_probs.npy"))
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:-8])
    assert torch.equal(build(), first)
    assert len(computed) == 4
    assert not torch.equal(build(dtype=torch.bfloat16), first)
    assert len(computed) == 6
    save(random_model(CONFIG, seed=5), folder)
    assert not torch.allclose(build(), first)
    assert len(computed) == 8


def test_validation_on_some_rows_knows_those_only(pairs: Cache, start: tuple[Transformer, Path]):
    _, folder = start
    loader = load(pairs(3))
    source = [WeightedSource(pairs(30, "val"))]
    options = {"seq_len": SEQ_LEN, "micro_batch": 2, "pad_id": 0, "first_unit": 3}
    some = EvalLoader(source, max_rows=3, **options)
    stage = DPO(DPORecipe())
    stage.build_models(context(folder, loader, some))
    assert stage.reference is not None
    read = {int(n) for b in some for n in b.unit_ids_P if n >= 0}  # type: ignore[attr-defined]
    known = stage.reference.values.isfinite().all(1).nonzero().flatten().tolist()
    assert set(known) == read | {0, 1, 2}


def test_without_weights_there_is_nothing_to_compare_with(pairs: Cache):
    loader = load(pairs(3))
    fresh = BuildContext(config=CONFIG, loader=loader)
    with pytest.raises(ConfigError, match="--from_checkpoint none gives none: give a checkpoint"):
        DPO(DPORecipe()).build_models(fresh)
    for kind in ("simpo", "orpo"):
        stage = DPO(DPORecipe(loss_type=kind))
        policy = stage.build_models(fresh).policy
        assert stage.reference is None
        loss = stage.loss(policy, first_batch(loader))  # type: ignore[arg-type]
        assert math.isfinite(loss.total.item())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "kto"}, "loss_type is 'kto'; it must be one of dpo, ipo, orpo, simpo"),
        ({"beta": 0.0}, "beta is 0.0; it must be above 0"),
        ({"label_smoothing": 0.5}, "label_smoothing is 0.5; it must be from 0 to below 0.5"),
        ({"label_smoothing": 0.1, "loss_type": "ipo"}, "label_smoothing is for loss_type dpo"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        DPORecipe(learning_rate=1.0, **options).check()

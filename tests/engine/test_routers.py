"""What is logged of the routers: sums over micro-batches and ranks, without a wait."""

from __future__ import annotations

import dataclasses
import logging
import math
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import torch
from small_models import EXPERTS, pack, random_documents, random_model, small_config
from torch import Tensor, nn

from minimind.engine.deepspeed_engine import DeepSpeedEngine
from minimind.engine.pending import RouterNumbers, StepNumbers
from minimind.engine.routers import ROUTER_COLUMNS, RouterWatch
from minimind.model.transformer import Transformer
from minimind.runtime.ranks import Ranks
from minimind.types import Batch, LossSum, StepStats

CPU = torch.device("cpu")


@dataclass
class Engine:
    """As much of an engine as the watch asks: other ranks that did the same as this one."""

    ranks: Ranks = field(default_factory=lambda: Ranks(0, 0, 1))
    loss_scale: float = 1.0

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        return values.mul_(self.ranks.world_size)


def loss_sum(model: Transformer, batch: Batch) -> LossSum:
    labels_M = batch.labels_BT.flatten()

    def head(hidden_MD: Tensor, weight_VD: Tensor) -> Tensor:
        logits_MV = hidden_MD @ weight_VD.T
        return nn.functional.cross_entropy(logits_MV, labels_M, reduction="none")

    output = model(batch, head)
    return LossSum(total=output.per_token.sum(), aux_loss=output.aux_loss)


def micro_batches() -> list[Batch]:
    documents = random_documents([12, 5, 9, 3])
    return [pack([documents[:2]], seq_len=20), pack([documents[2:]], seq_len=20)]


def numbers_of(watch: RouterWatch, model: Transformer, engine: Engine) -> RouterNumbers:
    """Of one step, its gradients scaled as an engine would."""
    for batch in micro_batches():
        loss = loss_sum(model, batch)
        assert loss.aux_loss is not None
        total = loss.total + loss.aux_loss * batch.count
        (total * engine.ranks.world_size * engine.loss_scale).backward()
        watch.add(loss, batch.count)
    return take(watch, engine)


def take(watch: RouterWatch, engine: Engine) -> RouterNumbers:
    numbers = watch.take(cast(DeepSpeedEngine, engine))
    assert numbers is not None
    return numbers


def describe(watch: RouterWatch, routers: RouterNumbers | None, count: int) -> StepStats:
    """Of a step of which nothing else is known."""
    zero = torch.zeros((), dtype=torch.float64)
    given = dict.fromkeys(("tokens", "stops", "loss", "metrics_N", "grad_norm"), zero)
    found = StepNumbers(count=zero + count, routers=routers, **given)
    names = [field.name for field in dataclasses.fields(StepStats)][:8]
    stats = StepStats(**dict.fromkeys(names, 0), metrics={"kl": 1.0}, diagnostics={"kept": 2.0})
    return watch.describe(stats, found)


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("loss_scale", [1.0, 1024.0])
def test_the_numbers_of_a_step(ranks: int, loss_scale: float):
    model = random_model(small_config(num_hidden_layers=3, **EXPERTS[1])).train()
    engine = Engine(Ranks(0, 0, ranks), loss_scale)
    watch = RouterWatch(model, CPU)
    batches = micro_batches()
    count = ranks * sum(batch.num_targets for batch in batches)
    found = describe(watch, numbers_of(watch, model, engine), count)

    model.zero_grad()
    aux, tokens = 0.0, 0
    for batch in batches:
        loss = loss_sum(model, batch)
        assert loss.aux_loss is not None
        (loss.total + loss.aux_loss * batch.count).backward()
        aux += ranks * loss.aux_loss.item() * batch.count
        tokens += 12 + 5 if batch is batches[0] else 9 + 3
    assert found.metrics == {"kl": 1.0, "aux_loss": pytest.approx(aux / count)}
    # The ranks' gradients of the sum, which are averaged: each rank's are scaled by their number.
    gates = [p.grad for n, p in model.named_parameters() if "mlp.gate." in n and p.grad is not None]
    assert len(gates) == 2
    norm = math.sqrt(sum(g.square().sum().item() for g in gates)) * ranks
    assert found.diagnostics["router_grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert found.diagnostics["dropped_tokens"] == 0
    assert list(found.expert_load) == [1, 2], "layer 0 is dense"
    entropies = []
    for shares in found.expert_load.values():
        assert sum(shares) == pytest.approx(1)
        assert all(share * tokens == pytest.approx(round(share * tokens)) for share in shares)
        entropies.append(-sum(s * math.log(s, 3) for s in shares if s))
    assert found.diagnostics["load_entropy"] == pytest.approx(sum(entropies) / 2)
    assert found.diagnostics["load_entropy_min"] == pytest.approx(min(entropies))
    assert {*found.metrics, *found.diagnostics} == {*ROUTER_COLUMNS, "kl", "kept"}


def test_each_step_starts_anew():
    model = random_model(small_config(**EXPERTS[0])).train()
    watch = RouterWatch(model, CPU)
    first = numbers_of(watch, model, Engine())
    assert torch.equal(numbers_of(watch, model, Engine()).flat(), first.flat())
    assert not take(watch, Engine()).flat().any()


@pytest.mark.parametrize("experts", EXPERTS, ids=str)
def test_recomputed_activations_are_counted_once(experts: dict[str, Any]):
    model = random_model(small_config(**experts)).train()
    watch = RouterWatch(model, CPU)
    first = numbers_of(watch, model, Engine())
    model.activation_checkpointing = True
    assert torch.equal(numbers_of(watch, model, Engine()).flat(), first.flat())


def test_validation_and_generation_are_not_counted():
    model = random_model(small_config(**EXPERTS[0])).train()
    watch = RouterWatch(model, CPU)
    with torch.no_grad():
        loss_sum(model, micro_batches()[0])
        watch.add(loss_sum(model.eval(), micro_batches()[0]), 1)
    assert not take(watch, Engine()).flat().any()


def test_the_model_may_be_a_part_and_its_routers_frozen():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value = nn.Linear(2, 2)
            self.policy = random_model(small_config(**EXPERTS[0]))

    module = Both().train()
    for gate in (p for n, p in module.named_parameters() if "mlp.gate." in n):
        gate.requires_grad_(False)
    watch = RouterWatch(module, CPU)
    found = describe(watch, numbers_of(watch, module.policy, Engine()), 25)
    assert found.diagnostics["router_grad_norm"] == 0
    assert found.metrics["aux_loss"] > 0


def test_a_dense_model_has_no_numbers():
    model = random_model(small_config()).train()
    watch = RouterWatch(model, CPU)
    loss = loss_sum(model, micro_batches()[0])
    watch.add(loss, 1)
    assert watch.take(cast(DeepSpeedEngine, Engine())) is None
    found = describe(watch, None, 5)
    assert (found.metrics, found.diagnostics, found.expert_load) == ({"kl": 1.0}, {"kept": 2.0}, {})
    assert not any(part._forward_hooks for part in model.modules())


@pytest.mark.parametrize(
    ("changes", "warns"), [({}, True), ({"norm_topk_prob": False}, False), (EXPERTS[0], False)]
)
def test_a_router_without_the_loss_is_warned_of_once(
    caplog: pytest.LogCaptureFixture, changes: dict[str, Any], warns: bool
):
    model = random_model(small_config(**({"num_experts": 4} | changes)))
    with caplog.at_level(logging.WARNING):
        RouterWatch(model, CPU)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == int(warns)
    assert all("--set norm_topk_prob=false" in text for text in said)

"""A micro-batch in fixed places beside the same one as it comes: losses, gradients, whole steps.

Without a GPU a plain call stands for the graph, with the memory that a graph would write to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from optimizer_steps import (
    ADAMW,
    ALONE,
    RATE,
    assert_equal_masters,
    micro_batches,
    resolved,
    target_count,
)
from small_models import EXPERTS, pack, random_documents, random_model, small_config
from torch import Tensor

from minimind.config.recipe import Recipe
from minimind.engine import graphed_step
from minimind.engine.deepspeed_engine import DeepSpeedEngine
from minimind.engine.graphed_step import GraphedLoss, MicroBatch, num_places, with_fixed_shapes
from minimind.engine.routers import RouterWatch
from minimind.errors import TrainingError
from minimind.runtime.devices import find_device
from minimind.runtime.seeds import seed_micro_batch
from minimind.stages.pretrain import Pretrain
from minimind.types import Batch, LossSum

STEPS = 5
MODELS: dict[str, dict[str, Any]] = {
    "dense": {"dropout": 0.1},
    "experts": {**EXPERTS[2], "head_dim": 16},
}


class PlainCall(MicroBatch[Batch]):
    """Computes where a graph would be replayed."""

    captured = 0

    def warm_up(self) -> None:
        return

    def capture(self, pool: Any) -> Any:
        type(self).captured += 1
        self._places = [torch.full_like(weight, torch.nan) for weight in self._weights]

    def run_forward(self) -> LossSum:
        with torch.enable_grad():
            self._found = self._loss(self._batch)
        return self._found

    def run_backward(self, grads: Sequence[Tensor]) -> Sequence[Tensor]:
        outputs = graphed_step._outputs(self._found)
        for place, grad in zip(
            self._places, torch.autograd.grad(outputs, self._weights, grads), strict=True
        ):
            place.copy_(grad)
        return self._places


@pytest.fixture
def plain_calls(monkeypatch: pytest.MonkeyPatch) -> type[PlainCall]:
    monkeypatch.setattr(graphed_step, "MicroBatch", PlainCall)
    monkeypatch.setattr(PlainCall, "captured", 0)
    return PlainCall


def build_engine(name: str, kind: str, options: dict[str, Any]) -> DeepSpeedEngine:
    model = random_model(small_config(**options))
    return DeepSpeedEngine(model, resolved(name, kind, ADAMW, 1.0), Recipe(), find_device(), ALONE)


def take_steps(engine: DeepSpeedEngine, graphed: bool) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Each step's losses and routers, and the masters at the end."""
    stage = Pretrain(engine.recipe)
    graphs, routers = GraphedLoss(stage, engine), RouterWatch(engine.module, engine.device)
    found: list[Tensor] = []
    for step in range(STEPS):
        batches = [batch.to(engine.device) for batch in micro_batches(step)]
        engine.start_step(target_count(batches).to(engine.device))
        for place, batch in enumerate(batches):
            seed_micro_batch(0, step, place)
            loss = graphs(batch) if graphed else stage.loss(engine, batch)
            engine.backward(loss, batch.count)
            routers.add(loss, batch.count)
            found.append(loss.total.detach())
        if (numbers := routers.take(engine)) is not None:
            found.append(numbers.flat())
        engine.step(RATE)
    return found, engine.full_weights()


def test_documents_get_places_and_a_row_bounds_their_lengths():
    documents = random_documents([5, 9, 4])
    batch = pack([documents[:2], documents[2:]], seq_len=16)
    assert num_places(batch) == 16
    batch = with_fixed_shapes(batch, 16)
    assert batch.max_len == 16
    assert batch.bounds == (0, 5, 14, 16, 20, *[32] * 12)
    assert batch.cu_seqlens.tolist() == list(batch.bounds)
    assert batch.cu_seqlens.dtype == torch.int32
    assert num_places(pack([random_documents([1] * 28)])) == 64  # room for more


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["zero0", "zero1", "zero2"])
def test_steps_are_those_of_batches_as_they_come(
    name: str, kind: str, model: str, plain_calls: type[PlainCall]
) -> None:
    """Two micro-batches a step, over documents of other lengths each time, and to the bit."""
    expected, weights = take_steps(build_engine(name, kind, MODELS[model]), graphed=False)
    found, its_weights = take_steps(build_engine(name, kind, MODELS[model]), graphed=True)
    assert plain_calls.captured == 1
    for mine, other in zip(found, expected, strict=True):
        assert torch.equal(mine, other)
    assert_equal_masters(its_weights, weights)


@pytest.mark.gpu
@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", ["zero0", "zero1", "zero2"])
def test_graphs_take_the_steps_of_single_launches(name: str, model: str) -> None:
    """In bf16, where attention's backward adds in whatever order its threads come."""
    options = {**MODELS[model], "head_dim": 16}
    start = dict(random_model(small_config(**options)).named_parameters())
    expected, weights = take_steps(build_engine(name, "bf16", options), graphed=False)
    engine = build_engine(name, "bf16", options)
    found, its_weights = take_steps(engine, graphed=True)
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=0.02, atol=1e-3)
    moved = sum(float((weights[n] - start[n]).abs().sum()) for n in weights)
    apart = sum(float((weights[n] - its_weights[n]).abs().sum()) for n in weights)
    assert apart < 0.1 * moved


def capture_fails(self: PlainCall, pool: Any) -> None:
    raise RuntimeError("operation not permitted when stream is capturing")


@pytest.mark.usefixtures("one_rank")
def test_where_the_first_capture_fails_training_goes_on_without(
    plain_calls: type[PlainCall], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected, weights = take_steps(build_engine("zero2", "fp32", {}), graphed=False)
    monkeypatch.setattr(plain_calls, "capture", capture_fails)
    found, its_weights = take_steps(build_engine("zero2", "fp32", {}), graphed=True)
    assert torch.equal(torch.stack(found[:2]), torch.stack(expected[:2]))
    assert_equal_masters(its_weights, weights)
    said = [record.message for record in caplog.records if "CUDA graphs" in record.message]
    assert said == [
        "training without CUDA graphs: operation not permitted when stream is capturing"
    ]


@pytest.mark.usefixtures("one_rank")
def test_a_later_capture_that_fails_ends_the_run(
    plain_calls: type[PlainCall], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = build_engine("zero2", "fp32", {})
    graphs = GraphedLoss(Pretrain(engine.recipe), engine)
    graphs(pack([random_documents([9])], seq_len=40))
    monkeypatch.setattr(plain_calls, "capture", capture_fails)
    with pytest.raises(TrainingError, match=r"places for 32 documents.*cuda_graph=false"):
        graphs(pack([random_documents([1] * 20)], seq_len=40))

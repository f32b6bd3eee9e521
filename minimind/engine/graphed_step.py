"""Runs a micro-batch's forward and backward as two CUDA graphs: two launches instead of hundreds.

The graphs hold the stage's loss over the bare module and its gradient with respect to aliases of
the weights; they contain nothing of DeepSpeed's and no parameter hooks. For autograd the two graphs
are one node over the real weights, which gives all their gradients at once, so DeepSpeed's hooks
receive them as usual.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from typing import Any, Generic

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from minimind.engine.bare_module import without_hooks
from minimind.engine.deepspeed_engine import DeepSpeedEngine
from minimind.engine.parameter_groups import trained_parameters
from minimind.engine.stage import OutT, Stage
from minimind.errors import TrainingError
from minimind.runtime.devices import send
from minimind.types import Batch, BatchT, HeadFn, LossSum, ModelOutput

logger = logging.getLogger("minimind")

LEAST_DOCUMENTS = 8
"""A graph has room for at least this many documents per row."""
_ROOM = 1.25
"""A graph has room for at least this many times the documents of the micro-batch it is captured
from."""


class GraphedLoss(Generic[OutT]):
    """Gives the same result as `stage.loss(engine, batch)`, for a stage that `is_static`.

    A graph is captured for the first micro-batch, and again for a micro-batch with more documents
    than the graph has room for. If the first capture fails on any rank, all ranks go on without
    graphs, and this is logged once.
    """

    def __init__(self, stage: Stage[Any, OutT], engine: DeepSpeedEngine) -> None:
        self._stage, self._engine = stage, engine
        self._weights = dict(trained_parameters(engine.module))
        self._aliases: dict[str, Tensor] = {}
        self._captured: MicroBatch[OutT] | None = None
        self._places = 0
        self._pool: Any = None
        self._failed = False

    def __call__(self, batch: OutT) -> LossSum:
        """Computes the loss of a micro-batch. Raises TrainingError where a later capture fails:
        without graphs gradients are reduced in another order, so one rank cannot go on without them
        alone."""
        if len(batch.bounds) - 1 > self._places and not self._failed:
            self._places = num_places(batch)
            self._capture(with_fixed_shapes(batch, self._places))
        if self._captured is None:
            return self._stage.loss(self._engine, batch)
        self._captured.load(with_fixed_shapes(batch, self._places))
        return self._captured.replay(tuple(self._weights.values()))

    def _capture(self, batch: OutT) -> None:
        is_first, problem = self._captured is None, None
        # From now on the weights stay at their addresses: ZeRO writes new values into them.
        self._aliases = self._aliases or {
            name: weight.detach().requires_grad_() for name, weight in self._weights.items()
        }
        try:
            captured = MicroBatch(self._loss, tuple(self._aliases.values()), batch)
            with without_hooks(self._engine.module):
                captured.warm_up()
            self._pool = captured.capture(self._pool)
            self._captured = captured
        except RuntimeError as error:
            problem = error
        if is_first:
            self._failed = self._engine.any_rank(problem is not None)
            if self._failed:
                self._captured = None
                said = "training without CUDA graphs: %s"
                logger.warning(said, problem or "another rank cannot capture its step")
        elif problem is not None:
            raise TrainingError(
                f"a CUDA graph with places for {self._places} documents cannot be captured: "
                f"{problem}. --set cuda_graph=false goes on without"
            ) from problem

    def _loss(self, batch: OutT) -> LossSum:
        def policy(batch: OutT, head: HeadFn) -> ModelOutput:
            return functional_call(self._engine.module, self._aliases, (batch,), {"head": head})

        return self._stage.loss(policy, batch)  # type: ignore[arg-type]


def num_places(batch: Batch) -> int:
    """Gives the number of documents that a graph captured from `batch` has room for, a power of
    two."""
    most = max(int(_ROOM * (len(batch.bounds) - 1)), len(batch.ids_BT) * LEAST_DOCUMENTS)
    return 1 << (most - 1).bit_length()


def with_fixed_shapes(batch: BatchT, places: int) -> BatchT:
    """Gives the batch in shapes that depend only on its number of rows and `places`: max_len
    becomes the row length, and empty documents are added at the end."""
    rows, length = batch.ids_BT.shape
    bounds = batch.bounds + (rows * length,) * (places + 1 - len(batch.bounds))
    cu_seqlens = send(bounds, batch.cu_seqlens.device, torch.int32)
    return replace(batch, cu_seqlens=cu_seqlens, bounds=bounds, max_len=length)


class MicroBatch(Generic[OutT]):
    """Owns the input tensors, which stay at their addresses, and the graphs that compute on
    them."""

    def __init__(
        self, loss: Callable[[OutT], LossSum], weights: Sequence[Tensor], batch: OutT
    ) -> None:
        self._loss, self._weights = loss, weights
        self._inputs = {name: tensor.clone() for name, tensor in _tensors(batch)}
        self._batch = replace(batch, **self._inputs)

    def warm_up(self) -> None:
        """Computes the loss and its gradient once without a graph, since compilation and allocation
        at first use must not be captured. The device's random generator is restored."""
        device = self._batch.ids_BT.device
        stream, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)
        stream.wait_stream(current)
        with torch.random.fork_rng([device]), torch.cuda.stream(stream):
            outputs = _outputs(self._loss(self._batch))
            torch.autograd.grad(outputs, self._weights, [torch.ones_like(out) for out in outputs])
        current.wait_stream(stream)

    def capture(self, pool: Any) -> Any:
        """Captures the graphs and gives their memory pool. `pool` is the pool of other graphs,
        which never run at the same time, or None."""
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        mode = "thread_local"  # the batches of later steps are pinned in another thread meanwhile
        with torch.cuda.graph(self._forward, pool=pool, capture_error_mode=mode):
            found = self._loss(self._batch)
        outputs = _outputs(found)
        self._given = [torch.ones_like(out) for out in outputs]
        pool = self._forward.pool()
        with torch.cuda.graph(self._backward, pool=pool, capture_error_mode=mode):
            self._grads = torch.autograd.grad(outputs, self._weights, self._given)
        self._found = replace(
            found,
            total=found.total.detach(),
            aux_loss=None if found.aux_loss is None else found.aux_loss.detach(),
        )
        return pool

    def load(self, batch: OutT) -> None:
        """Copies another batch of the same shapes into the graphs' input tensors."""
        for name, tensor in _tensors(batch):
            self._inputs[name].copy_(tensor)
        self._batch = replace(batch, **self._inputs)

    def replay(self, weights: Sequence[Tensor]) -> LossSum:
        """Gives the loss as a differentiable function of `weights`, whose values must equal those
        of the captured weights."""
        found = self.run_forward()
        total, *aux_loss = _Backward.apply(self, _outputs(found), *weights)  # type: ignore[misc]
        metrics = {name: value.detach().clone() for name, value in found.metrics.items()}
        return LossSum(total=total, aux_loss=aux_loss[0] if aux_loss else None, metrics=metrics)

    def run_forward(self) -> LossSum:
        """Runs the forward graph and gives its loss, which the next call overwrites."""
        self._forward.replay()
        return self._found

    def run_backward(self, grads: Sequence[Tensor]) -> Sequence[Tensor]:
        """Runs the backward graph on `grads`, the gradients of the outputs, and gives the gradient
        of each weight. The next call overwrites them."""
        for given, grad in zip(self._given, grads, strict=True):
            given.copy_(grad)
        self._backward.replay()
        return self._grads


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, captured: MicroBatch[Any], outputs: Sequence[Tensor], *weights: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.captured = captured
        return tuple(out.detach().clone() for out in outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        found = ctx.captured.run_backward(grads)
        # All gradients are copied, in one launch: autograd would otherwise take the graph's own
        # memory as a weight's gradient, and the next replay would overwrite it before the sum.
        parts = torch.cat([grad.flatten() for grad in found]).split([g.numel() for g in found])
        return None, None, *(part.view_as(grad) for part, grad in zip(parts, found, strict=True))


def _outputs(loss: LossSum) -> list[Tensor]:
    return [loss.total] if loss.aux_loss is None else [loss.total, loss.aux_loss]


def _tensors(batch: Any) -> Iterator[tuple[str, Tensor]]:
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, Tensor):
            yield field.name, value

"""Names the purpose (holder) of each tensor of a training step, by when and where the tensor is
made."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch

from minimind.engine.deepspeed_engine import DeepSpeedEngine
from minimind.engine.loop import Loop
from minimind.engine.stage import StageModels
from minimind.rehearsal.live_bytes import LiveBytes, tensors_in

HOLDERS = (
    "weights",
    "helpers",
    "masters",
    "optimizer",
    "gradients",
    "buckets",
    "activations",
    "logits",
    "backward",
    "update",
    "rollouts",
    "cache",
    "decoding",
    "batches",
)
"""The uses of memory in a step:
weights: the trained model's, in the dtype it computes in; helpers: frozen models;
masters: fp32 copies of the weights; optimizer: the optimizer's states;
gradients: those kept for the update; buckets: communication buffers;
activations: what the forward keeps; logits: the output layer's chunk of tokens;
backward, update: their temporaries; rollouts: generating answers, with its cache;
cache: keys and values; decoding: the temporaries of a generation's step;
batches: tokens and other input."""

_LOGITS = (
    *("linear_loss.py", "linear_kl.py", "linear_token_loss.py", "linear_distillation.py"),
    "token_chunks.py",
)
_FRAMES = 12


class Moments:
    """Tracks which part of a training step is running."""

    def __init__(self) -> None:
        self._now = "batches"

    def holder(self) -> str:
        """Gives the holder of a tensor that the caller is making at this moment."""
        if self._now in ("activations", "backward") and _is_below(_LOGITS):
            return "logits"
        if self._now == "backward" and _is_below(("stage_1_and_2.py", "stage3.py", "engine.py")):
            return "gradients"
        return self._now

    @contextlib.contextmanager
    def during(self, what: str) -> Iterator[None]:
        before, self._now = self._now, what
        try:
            yield
        finally:
            self._now = before

    @contextlib.contextmanager
    def of(self, loop: Loop[Any, Any]) -> Iterator[None]:
        """Tracks the steps of `loop` inside the block, so that `holder` knows whether rollouts,
        activations, backward or update are being computed. It patches the stage, DeepSpeedEngine
        and torch.autograd.grad."""
        stage = loop.stage
        prepare = stage.prepare

        def prepared(*args: Any) -> Iterator[Any]:
            updates = iter(prepare(*args))
            while True:
                with self.during("rollouts"):
                    update = next(updates, None)
                if update is None:
                    return
                yield update

        with (
            mock.patch.object(stage, "prepare", prepared),
            self._within("backward", torch.autograd, "grad"),
            self._within("activations", stage, "loss"),
            self._within("backward", DeepSpeedEngine, "backward"),
            self._within("update", DeepSpeedEngine, "step"),
        ):
            yield

    def _within(self, what: str, owner: Any, name: str) -> contextlib.AbstractContextManager[Any]:
        """Patches a function so that its calls count as the part `what` of the step."""
        function = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.during(what):
                return function(*args, **kwargs)

        return mock.patch.object(owner, name, call)


def name_holders(live: LiveBytes, engine: DeepSpeedEngine, models: StageModels) -> None:
    """Names the holders of the tensors that exist before the step and stay: weights, helpers,
    masters, optimizer states, buckets."""
    inner: Any = engine._engine
    optimizer = inner.optimizer
    states = getattr(optimizer, "optimizer", optimizer).state
    for name, value in vars(optimizer).items():
        if not callable(value):
            for tensor in tensors_in(value):
                live.rename(tensor, _holder_by_name(name))
    for tensor in tensors_in([list(state.values()) for state in states.values()]):
        live.rename(tensor, "optimizer")
    for helper in models.helpers:
        for tensor in (*helper.parameters(), *helper.buffers()):
            live.rename(tensor, "helpers")
    for parameter in models.policy.parameters():
        if parameter.grad is not None:
            live.rename(parameter.grad, "gradients")
    for tensor in (*models.policy.parameters(), *models.policy.buffers()):
        live.rename(getattr(tensor, "ds_tensor", tensor), "weights")


def _holder_by_name(attribute: str) -> str:
    """Gives the holder of the tensors that DeepSpeed's optimizer keeps in `attribute`."""
    words = {"bucket": "buckets", "ipg": "buckets", "grad": "gradients", "fp32": "masters"}
    return next((holder for word, holder in words.items() if word in attribute), "masters")


def _is_below(files: tuple[str, ...]) -> bool:
    frame: Any = sys._getframe(2)
    for _ in range(_FRAMES):
        if frame is None:
            return False
        if frame.f_code.co_filename.endswith(files):
            return True
        frame = frame.f_back
    return False

"""Names what holds a tensor of a training step, by when and where it was made."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
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
"""Weights in the dtype of the products; those of frozen models beside them; fp32 masters and the
optimizer's states; gradients that are kept; buckets for communication; what the forward keeps;
what the output layer makes of a chunk of tokens; temporaries of backward and update; answers that
are generated and their cache; keys and values, and what a step of a generation makes; tokens and
numbers."""

_LOGITS = ("linear_loss.py", "linear_kl.py", "linear_token_loss.py", "linear_distillation.py")
_FRAMES = 12


class Moments:
    """Knows what the loop does at the moment."""

    def __init__(self) -> None:
        self._now = "batches"

    def holder(self) -> str:
        """Gives the holder of a tensor that is made now, here."""
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
        """Has `holder` know, inside the block, what a step of `loop` is doing (rollouts,
        activations, backward, update), by patching the stage, DeepSpeedEngine and
        torch.autograd.grad."""
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
            mock.patch.object(
                torch.autograd, "grad", self._within("backward", torch.autograd.grad)
            ),
            mock.patch.object(stage, "loss", self._within("activations", stage.loss)),
            mock.patch.object(
                DeepSpeedEngine, "backward", self._within("backward", DeepSpeedEngine.backward)
            ),
            mock.patch.object(
                DeepSpeedEngine, "step", self._within("update", DeepSpeedEngine.step)
            ),
        ):
            yield

    def _within(self, what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.during(what):
                return function(*args, **kwargs)

        return call


def name_holders(live: LiveBytes, engine: DeepSpeedEngine, models: StageModels) -> None:
    """Names what was made before the step and stays."""
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
    """Tells what DeepSpeed keeps under an attribute of its optimizer."""
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

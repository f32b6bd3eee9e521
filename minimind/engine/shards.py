"""Makes DeepSpeed write its shards so that no rank is left waiting, and read them without running
code.

DeepSpeed's `save_checkpoint` ends with a barrier, which a rank whose disk is full never reaches.
Its `load_checkpoint` unpickles any content, and so could run code.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

from minimind.engine.replaced_names import replaced_names
from minimind.errors import CheckpointError
from minimind.runtime.together import all_do

_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""The environment variable that makes every torch.load refuse pickles that need code, whatever
arguments it is called with."""
PLAIN_CLASSES = (
    ("deepspeed.runtime.fp16.loss_scaler", "LossScaler"),
    ("deepspeed.runtime.fp16.loss_scaler", "DynamicLossScaler"),
    ("deepspeed.runtime.zero.config", "ZeroStageEnum"),
    ("deepspeed.utils.tensor_fragment", "fragment_address"),
)
"""The classes in shards that PyTorch does not know; each holds numbers alone."""
_CODE_WANTED = re.compile(r"GLOBAL:? (\S+)")
"""Matches PyTorch's error message about a pickle that it refuses."""


@contextlib.contextmanager
def meeting_at_the_end(engine: Any) -> Iterator[None]:
    """Lets DeepSpeed's `engine` go on to the end of `save_checkpoint` where this rank cannot write,
    and raises the rank's first error at the end of the block."""
    problems: list[Exception] = []
    methods: dict[str, Any] = {
        name: _remember(getattr(engine, name), problems)
        for name in ("_save_checkpoint", "_save_zero_checkpoint")
    }
    # Scripts that turn shards into weights: the checkpoint has the weights.
    methods["_copy_recovery_script"] = lambda *_: None
    computes_crc32 = torch.serialization.get_crc32_options()
    # It takes half the time of a save, and the checkpoint's own digests do the same.
    torch.serialization.set_crc32_options(False)
    try:
        with replaced_names(engine, methods):
            yield
    finally:
        torch.serialization.set_crc32_options(computes_crc32)
    if problems:
        raise problems[0]


def _remember(method: Callable[..., Any], problems: list[Exception]) -> Callable[..., None]:
    def call(*arguments: Any, **options: Any) -> None:
        try:
            method(*arguments, **options)
        except Exception as error:  # torch raises RuntimeError where the disk is full
            problems.append(error)

    return call


@contextlib.contextmanager
def reading_together(engine: Any, folder: object) -> Iterator[None]:
    """Makes DeepSpeed's `load_checkpoint` read data alone, and raise CheckpointError on every rank
    where one cannot read its shards: at ZeRO stage 3 the others would wait for it in the gathering
    that follows."""
    names = ("_load_checkpoint", "_load_zero_checkpoint")
    methods = {name: _together(getattr(engine, name), folder) for name in names}
    with without_code(), replaced_names(engine, methods):
        yield


def _together(method: Callable[..., Any], folder: object) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        def read() -> Any:
            try:
                return method(*arguments, **options)
            except Exception as error:
                raise CheckpointError(explain_unreadable(folder, str(error))) from error

        return all_do(read)

    return call


@contextlib.contextmanager
def without_code() -> Iterator[None]:
    """Makes every torch.load inside the block, DeepSpeed's own too, read data alone: a pickle that
    needs code raises pickle.UnpicklingError. DeepSpeed is imported already."""
    plain = [getattr(sys.modules[module], name) for module, name in PLAIN_CLASSES]
    before = os.environ.get(_WEIGHTS_ONLY)
    os.environ[_WEIGHTS_ONLY] = "1"
    try:
        with torch.serialization.safe_globals(plain):
            yield
    finally:
        del os.environ[_WEIGHTS_ONLY]
        if before is not None:
            os.environ[_WEIGHTS_ONLY] = before


STAND_IN = torch.bool
"""The dtype of a moment that the optimizer does not keep."""


@contextlib.contextmanager
def with_second_moments() -> Iterator[None]:
    """Makes every torch.load inside the block give a moment `exp_avg_sq`, of dtype STAND_IN, to
    optimizer states that have `exp_avg` alone, as Muon's do: DeepSpeed's converter asks for
    both."""
    load = torch.load

    def completed(*arguments: Any, **options: Any) -> Any:
        loaded = load(*arguments, **options)
        saved = loaded.get("optimizer_state_dict") if isinstance(loaded, dict) else None
        for name in ("base_optimizer_state", "optimizer_state_dict"):
            for state in ((saved or {}).get(name) or {}).get("state", {}).values():
                if "exp_avg" in state and "exp_avg_sq" not in state:
                    none = torch.zeros((), dtype=STAND_IN)
                    state["exp_avg_sq"] = none.expand(state["exp_avg"].shape)
        return loaded

    with replaced_names(torch, {"load": completed}):
        yield


def explain_unreadable(folder: object, problem: str) -> str:
    """Says why DeepSpeed could not read a checkpoint, from its error or the converter's output."""
    if code := _CODE_WANTED.search(problem):
        return (
            f"{folder}: reading its shards would run code ({code[1]}), which no checkpoint of "
            "MiniMind does; nothing was run. Its weights are data: --from_checkpoint starts a new "
            "run from them"
        )
    return f"{folder}: DeepSpeed cannot load this checkpoint: {problem}"


def drop_frozen(module: torch.nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Drops frozen parameters from a state dict under all their names; DeepSpeed drops a tied
    matrix only under its first name."""
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if not parameter.requires_grad:
            state.pop(prefix + name, None)

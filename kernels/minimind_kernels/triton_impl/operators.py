"""A custom operator around each Triton body, for torch.compile.

Eager code calls the body itself: the dispatcher would cost some 25 µs a call more.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from ..form import Form

_OVERWRITES_LOGITS = (
    "cross_entropy_grad",
    "cross_entropy_loss_and_grad",
    "kl_grad",
    "kl_loss_and_grad",
)


def register(function: Callable[..., Any]) -> None:
    """Make `function` the operator minimind_kernels::<its name>; the Form of the same name tells
    the shapes and dtypes of its results."""
    name = function.__name__
    mutated = ("logits_CV",) if name in _OVERWRITES_LOGITS else ()
    resolved = inspect.get_annotations(function, eval_str=True)
    function.__annotations__ = resolved
    operator = torch.library.custom_op(f"minimind_kernels::{name}", function, mutates_args=mutated)
    operator.register_fake(Form.by_name[name].fake)

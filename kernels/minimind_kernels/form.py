"""Runs one body of an operation in three ways: Triton, plain PyTorch, or generated C++.

On a GPU a body is a Triton kernel (triton_impl). On the CPU, plain PyTorch makes eight passes over
memory for a norm, and casts besides in bf16; code that torch.compile generates from the same body
makes one. `backend` chooses by device, dtype and shape alone. The generated code itself depends on
nothing but dtypes and inner sizes: each combination is compiled once, from its own copy of the code
object, with a dynamic number of rows and a fixed hint for it. So no earlier call, no other model in
the process and no first batch of an odd size changes the bits of a training run.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import backend

logger = logging.getLogger("minimind_kernels")

_HINT_ROWS = 2048
"""The number of rows that code generation is told."""

MIN_GENERATED_ROWS = 64
"""The least number of rows that compiled code serves."""
_MAX_ROWS = 1 << 40

_OPTIONS: dict[str, Any] = {"emulate_precision_casts": True}
"""Rounds to bf16 where the body says so: by default the generator keeps such a value in fp32, and
the sum that a norm reads would differ from the sum that is returned."""


_FORMS: dict[str, Form] = {}


class Form:
    """Holds a function of tensors that records no gradient.

    `body(*tensors, **constants)` is written in PyTorch. Tensors whose first dimension is the rows
    come first, `num_row_tensors` of them; the others keep their sizes. A tensor may be None.

    `triton` names the function of the same signature, as module:function in triton_impl; None for a
    part of another body, which only gets CPU tensors. torch.compile sees it as the custom operator
    minimind_kernels::function. `overwrites` names the tensors that it writes to, and `has_products`
    says that the operation multiplies matrices, for which Triton's code is slow on some GPUs.
    `fake` gives empty results of the right shapes, for a body whose results' shapes depend on the
    values of its arguments.
    """

    def __init__(
        self,
        triton: str | None,
        body: Callable[..., Any],
        *,
        num_row_tensors: int,
        overwrites: tuple[str, ...] = (),
        has_products: bool = False,
        fake: Callable[..., Any] | None = None,
    ) -> None:
        module, _, name = (triton or "").partition(":")
        self.name = name or None
        self.body = body
        self.overwrites = overwrites
        self.fake = fake or body
        self._module = module
        self._num_row_tensors = num_row_tensors
        self._has_products = has_products
        self._generated: dict[Any, Callable[..., Any]] = {}
        if self.name is not None:
            _FORMS[self.name] = self

    def __call__(self, *tensors: Any, generated: bool | None = None, **constants: Any) -> Any:
        """Runs the body. `generated` overrides the choice by size, for tensors that are chunks of
        larger ones."""
        name = self.name
        if name and backend.use_triton(name, *tensors, has_products=self._has_products):
            return self._run_triton(name, tensors, constants)
        if torch.compiler.is_compiling():
            return self.body(*tensors, **constants)
        if generated is None:
            of_rows = tensors[: self._num_row_tensors]
            largest = max(t.numel() for t in of_rows if t is not None)
            generated = tensors[0].device.type == "cpu" and backend.use_compiled_cpu(
                tensors[0].shape[0], largest
            )
        with torch.no_grad():
            if generated:
                return self._run_generated(tensors, constants)
            return self.body(*tensors, **constants)

    @functools.cached_property
    def triton(self) -> Callable[..., Any]:
        """Gives the Triton function; its module, and Triton, are imported at the first call."""
        module = importlib.import_module(f"{__package__}.triton_impl.{self._module}")
        return getattr(module, str(self.name))

    def _run_triton(self, name: str, tensors: tuple[Tensor, ...], constants: dict[str, Any]) -> Any:
        if torch.compiler.is_compiling():
            register(name)
            return getattr(torch.ops.minimind_kernels, name)(*tensors, **constants)
        first = tensors[0]
        if first.is_cuda and first.get_device() != torch.cuda.current_device():
            with torch.cuda.device(first.device):
                return self.triton(*tensors, **constants)
        return self.triton(*tensors, **constants)

    def _run_generated(self, tensors: tuple[Tensor, ...], constants: dict[str, Any]) -> Any:
        # Detached and contiguous, so that no code is generated anew for another requires_grad or
        # other strides.
        tensors = tuple(t if t is None else t.detach().contiguous() for t in tensors)
        key = (
            tuple(
                t if t is None else (t.dtype, *t.shape[i < self._num_row_tensors :])
                for i, t in enumerate(tensors)
            ),
            tuple(constants.items()),
            # A change of these makes Dynamo compile anew, with the current batch's size as its
            # hint.
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_num_threads(),
            torch.get_default_dtype(),
        )
        if key not in self._generated:
            self._generated[key] = self._generate(tensors, constants)
        return self._generated[key](*tensors, **constants)

    def _generate(
        self, tensors: tuple[Tensor, ...], constants: dict[str, Any]
    ) -> Callable[..., Any]:
        body = self.body
        # A separate code object: Dynamo counts compilations, and learns which sizes vary, by code
        # object. From PyTorch 2.13 on, `isolate_recompiles` would be enough.
        own = types.FunctionType(body.__code__.replace(), body.__globals__, body.__name__)
        own.__kwdefaults__ = body.__kwdefaults__
        examples = list(tensors)
        for i, tensor in enumerate(tensors[: self._num_row_tensors]):
            if tensor is None:
                continue
            examples[i] = tensor.new_zeros((_HINT_ROWS, *tensor.shape[1:]))
            torch._dynamo.mark_dynamic(examples[i], 0, min=MIN_GENERATED_ROWS, max=_MAX_ROWS)
        try:
            compiled = torch.compile(own, fullgraph=True, options=_OPTIONS)
            compiled(*examples, **constants)
        except Exception:
            if backend.compile_setting() == "1":
                raise
            logger.warning(
                "%s: generating CPU code failed; plain PyTorch from here on "
                "(MINIMIND_COMPILE=0 says so from the start)",
                body.__name__,
                exc_info=logger.isEnabledFor(logging.DEBUG),
            )
            return body
        return compiled


def register(name: str) -> bool:
    """Registers the Triton function of this name as the operator minimind_kernels::name, once.
    Eager code calls the function itself: the dispatcher would cost some 25 µs more per call."""
    if not hasattr(torch.ops.minimind_kernels, name):
        form = _FORMS[name]
        function = form.triton
        function.__annotations__ = inspect.get_annotations(function, eval_str=True)
        operator = torch.library.custom_op(
            f"minimind_kernels::{name}", function, mutates_args=form.overwrites
        )
        operator.register_fake(form.fake)
    return True


# Does what torch.compiler.assume_constant_result does, which would import Dynamo and with it
# Triton.
register._dynamo_marked_constant = True  # type: ignore[attr-defined]


def as_rows(x: Tensor) -> Tensor:
    """Gives x [..., D] as rows [M, D]."""
    return x if x.ndim == 2 else x.reshape(-1, x.shape[-1])


def shaped(rows_MD: Tensor, like: Tensor) -> Tensor:
    """Gives rows the leading dimensions of `like`: undoes `as_rows`. Call it inside an autograd
    function, where a view adds no node to the graph."""
    return rows_MD if like.ndim == 2 else rows_MD.view(*like.shape[:-1], rows_MD.shape[1])


def sum_rows(x_MD: Tensor) -> Tensor:
    """Sums over the rows, for use in a body. Generated code adds row after row, which in fp32 loses
    digits over thousands of them (PyTorch's own sum adds pairwise), so it sums in fp64."""
    return x_MD.sum(0, dtype=torch.float64)

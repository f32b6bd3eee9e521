"""Bodies of operations on the CPU: plain PyTorch, or C++ generated from it by torch.compile.

In plain PyTorch a norm is eight passes over memory and, in bf16, casts besides; generated code is
one pass. Which of the two runs is `backend`'s choice, by shape alone. The generated code itself
depends on nothing but dtypes and inner sizes: each combination is compiled once, from a code
object of its own, with the rows dynamic and their hint fixed. So no earlier call, no other model
in the process and no first batch of an odd size changes the bits of a training run.
"""

from __future__ import annotations

import logging
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import backend

logger = logging.getLogger("minimind_kernels")

_HINT_ROWS = 2048
"""The rows that code generation sees."""

MIN_GENERATED_ROWS = 64
"""What is compiled serves any number of rows from here up."""
_MAX_ROWS = 1 << 40

_OPTIONS: dict[str, Any] = {"emulate_precision_casts": True}
"""Round to bf16 where the body says so: by default the generator keeps such a value in fp32, and
the sum that a norm reads would not be the sum that is handed on."""


class CpuForm:
    """A function of tensors, run plainly or as generated code.

    `body(*tensors, **constants)` is written in PyTorch. Tensors whose first dimension is the rows
    come first, `num_row_tensors` of them; the others keep their sizes. No gradient is recorded.
    """

    def __init__(self, body: Callable[..., Any], *, num_row_tensors: int) -> None:
        self._body = body
        self._num_row_tensors = num_row_tensors
        self._compiled: dict[Any, Callable[..., Any]] = {}

    def __call__(self, *tensors: Tensor, generated: bool | None = None, **constants: Any) -> Any:
        """`generated` overrules the choice where the tensors are parts of something larger."""
        if generated is None:
            largest = max(t.numel() for t in tensors[: self._num_row_tensors])
            generated = tensors[0].device.type == "cpu" and backend.use_compiled_cpu(
                tensors[0].shape[0], largest
            )
        with torch.no_grad():
            if generated:
                return self._run_compiled(tensors, constants)
            return self._body(*tensors, **constants)

    def _run_compiled(self, tensors: tuple[Tensor, ...], constants: dict[str, Any]) -> Any:
        # Detached and contiguous, so that neither requires_grad nor strides ask for other code.
        tensors = tuple(t.detach().contiguous() for t in tensors)
        inner = [t.shape[i < self._num_row_tensors :] for i, t in enumerate(tensors)]
        key = (
            tuple((t.dtype, *shape) for t, shape in zip(tensors, inner, strict=True)),
            tuple(constants.items()),
            torch.is_inference_mode_enabled(),
        )
        if key not in self._compiled:
            self._compiled[key] = self._compile(tensors, constants)
        return self._compiled[key](*tensors, **constants)

    def _compile(
        self, tensors: tuple[Tensor, ...], constants: dict[str, Any]
    ) -> Callable[..., Any]:
        body = self._body
        # A code object of its own: Dynamo counts compilations, and learns which sizes vary, by
        # code object.
        own = types.FunctionType(body.__code__.replace(), body.__globals__, body.__name__)
        own.__kwdefaults__ = body.__kwdefaults__
        examples = list(tensors)
        for i in range(self._num_row_tensors):
            examples[i] = tensors[i].new_zeros((_HINT_ROWS, *tensors[i].shape[1:]))
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


def sum_rows(x_MD: Tensor) -> Tensor:
    """The sum over the rows, for use in a body. Generated code adds row after row, which in fp32
    loses digits over thousands of them (PyTorch's own sum adds pairwise): so in fp64."""
    return x_MD.sum(0, dtype=torch.float64)

"""One body of an operation, three ways to run it: Triton, plain PyTorch, or generated C++.

On a GPU a body is a Triton kernel (triton_impl). On the CPU, plain PyTorch makes eight passes over
memory for a norm and, in bf16, casts besides; code that torch.compile generates from the same body
makes one. Which way is `backend`'s choice, by device, dtype and shape alone. The generated code
itself depends on nothing but dtypes and inner sizes: each combination is compiled once, from a
code object of its own, with the rows dynamic and their hint fixed. So no earlier call, no other
model in the process and no first batch of an odd size changes the bits of a training run.
"""

from __future__ import annotations

import logging
import types
from collections.abc import Callable
from typing import Any, ClassVar

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


class Form:
    """A function of tensors that records no gradient.

    `body(*tensors, **constants)` is written in PyTorch. Tensors whose first dimension is the rows
    come first, `num_row_tensors` of them; the others keep their sizes, and may be None where no
    code is generated. `name` is that of the function of the same signature in triton_impl, and of
    the custom operator around it that torch.compile sees; None for a part of another body, which
    meets CPU tensors alone. `fake` gives empty results, where the body reads values and cannot
    tell their shapes from shapes.
    """

    by_name: ClassVar[dict[str, Form]] = {}

    def __init__(
        self,
        name: str | None,
        body: Callable[..., Any],
        *,
        num_row_tensors: int,
        fake: Callable[..., Any] | None = None,
    ) -> None:
        if name is not None:
            self.by_name[name] = self
        self.name = name
        self.body = body
        self.fake = fake or body
        self._num_row_tensors = num_row_tensors
        self._generated: dict[Any, Callable[..., Any]] = {}

    def __call__(self, *tensors: Any, generated: bool | None = None, **constants: Any) -> Any:
        """`generated` overrules the choice where the tensors are parts of something larger."""
        present = (tensor for tensor in tensors if tensor is not None)
        if self.name is not None and backend.use_triton(self.name, *present):
            return self._run_triton(self.name, tensors, constants)
        if torch.compiler.is_compiling():
            return self.body(*tensors, **constants)
        if generated is None:
            largest = max(t.numel() for t in tensors[: self._num_row_tensors])
            generated = tensors[0].device.type == "cpu" and backend.use_compiled_cpu(
                tensors[0].shape[0], largest
            )
        with torch.no_grad():
            if generated:
                return self._run_generated(tensors, constants)
            return self.body(*tensors, **constants)

    def _run_triton(self, name: str, tensors: tuple[Tensor, ...], constants: dict[str, Any]) -> Any:
        from . import triton_impl

        if torch.compiler.is_compiling():
            return getattr(torch.ops.minimind_kernels, name)(*tensors, **constants)
        function = getattr(triton_impl, name)
        device = tensors[0].device
        if device.type == "cuda" and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):
                return function(*tensors, **constants)
        return function(*tensors, **constants)

    def _run_generated(self, tensors: tuple[Tensor, ...], constants: dict[str, Any]) -> Any:
        # Detached and contiguous, so that neither requires_grad nor strides ask for other code.
        tensors = tuple(t.detach().contiguous() for t in tensors)
        inner = [t.shape[i < self._num_row_tensors :] for i, t in enumerate(tensors)]
        key = (
            tuple((t.dtype, *shape) for t, shape in zip(tensors, inner, strict=True)),
            tuple(constants.items()),
            # What Dynamo would compile anew for, with the batch at hand for a hint.
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

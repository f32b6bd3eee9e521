"""Loads other libraries' functions, each optional, and measures how far a result is from the
exact one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from minimind_kernels.op import (
    ERROR_RATIO,
    ERROR_SLACK,
    PRESETS,
    Case,
    Function,
    Rival,
    build_cases,
)
from torch import Tensor

PACKAGES = {
    "liger": "liger-kernel",
    "liger-cute": "liger-kernel[cutedsl]",
    "quack": "quack-kernels",
    "cut-cross-entropy": "cut-cross-entropy",
}
"""Names the package that pip installs for the library of a rival; all are in the extra `rivals`."""


def load_rival(rival: Rival) -> Callable[..., Any] | None:
    """Loads a rival's function; None where it is not available, for the reason that
    `skipped_rivals` gives."""
    found = _load(rival.function)
    return None if isinstance(found, str) else found


def skipped_rivals() -> dict[str, str]:
    """Says why rivals cannot be measured here: the reasons by library."""
    reasons: dict[str, dict[str, None]] = {}
    for sizes in PRESETS:
        for case in build_cases(sizes, 8, torch.bfloat16, "meta"):
            for rival in case.rivals:
                if isinstance(found := _load(rival.function), str):
                    reasons.setdefault(rival.library, {})[found] = None
    return {
        library: f"{'; '.join(found)}; pip install '{PACKAGES[library]}'"
        for library, found in reasons.items()
    }


@functools.cache
def _load(function: str) -> Callable[..., Any] | str:
    """Gives the function, or the reason why it is not available."""
    module, _, name = function.partition(":")
    try:
        found = getattr(import_module(module), name)
    except Exception as error:  # Some libraries look for a GPU while they are imported.
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return found.apply if hasattr(found, "apply") else found


def rival_inputs(rival: Rival, case: Case) -> tuple[Tensor, ...]:
    """Gives the rival's inputs of a case as leaves, so that making them is not timed."""
    if rival.inputs is None:
        return case.inputs
    with torch.no_grad():
        made = rival.inputs(*case.inputs)
    return tuple(t.requires_grad_(t.is_floating_point()) for t in made)


@dataclass(frozen=True, slots=True)
class Errors:
    """Holds the error of each output and of each gradient: the norm of the error over the norm of
    the exact tensor."""

    forward: tuple[float, ...]
    backward: tuple[float, ...]

    def of(self, direction: str) -> tuple[float, ...]:
        """Gives the errors of the direction `forward` or `backward`; for any other name all of
        them."""
        both = {"forward": self.forward, "backward": self.backward}
        return both.get(direction, self.forward + self.backward)


class Exact:
    """Holds the results of a case's plain form in fp64, and the errors of the plain form in the
    case's dtype."""

    def __init__(self, case: Case) -> None:
        self._case = case
        wide = [
            t.detach().double().requires_grad_(t.requires_grad) if t.is_floating_point() else t
            for t in case.inputs
        ]
        self._outputs, self._grads = _results(case, case.plain, wide)
        self.plain = self.errors(case.plain)

    def errors(self, function: Function, rival: Rival | None = None) -> Errors:
        """Measures the errors of a function of the case's inputs, or of the rival's. Raises
        ValueError where its results are not as many or not of the same shapes."""

        def run(*tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
            if rival is None or rival.inputs is None:
                return function(*tensors)
            return function(*rival.inputs(*tensors))

        outputs, grads = _results(self._case, run, self._case.inputs)
        return Errors(_errors(outputs, self._outputs), _errors(grads, self._grads))

    def differs(self, errors: Errors, direction: str = "both") -> bool:
        """Tells whether a result has a larger error than operations of this project may have."""
        slack = ERROR_SLACK[self._case.inputs[0].dtype]
        pairs = zip(errors.of(direction), self.plain.of(direction), strict=True)
        # Written so that NaN counts as different.
        return not all(error <= ERROR_RATIO * plain + slack for error, plain in pairs)


def _results(
    case: Case, function: Function, inputs: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Gives the outputs, and the gradients of a fixed random weighting of the outputs. With
    `uniform_grad`, each output is replaced by its sum."""
    outputs = function(*inputs)
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    if case.uniform_grad:
        outputs = tuple(o.sum() for o in outputs)
    outputs = tuple(o for o in outputs if o.is_floating_point() and o.requires_grad)
    generator = torch.Generator(outputs[0].device).manual_seed(7)
    narrow = case.inputs[0].dtype  # Rounded to it in fp64 too, or a rounding would be an error.
    upstream = [
        torch.randn(o.shape, generator=generator, device=o.device).to(narrow).to(o.dtype)
        if o.ndim else torch.ones_like(o)
        for o in outputs
    ]  # fmt: skip
    leaves = [t for t in inputs if t.requires_grad]
    kept = [o.detach().clone() for o in outputs]  # A rival may overwrite them in its backward.
    return kept, list(torch.autograd.grad(outputs, leaves, upstream))


def _errors(found: Sequence[Tensor], exact: Sequence[Tensor]) -> tuple[float, ...]:
    if len(found) != len(exact):
        raise ValueError(f"{len(found)} results, where the plain form has {len(exact)}")
    errors = []
    for one, other in zip(found, exact, strict=True):
        if one.shape != other.shape:
            raise ValueError(
                f"a result of {tuple(one.shape)}, where the plain form's is {tuple(other.shape)}"
            )
        errors.append((one.double() - other).norm().item() / (other.norm().item() or 1.0))
    return tuple(errors)

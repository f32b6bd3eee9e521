"""Describes an operation in one object, `Op`, for all code that uses or tests it.

Tests, benchmarks, the compile report, the sweep of tiles and the README walk over `OPS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .form import Form

Function = Callable[..., Tensor | tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Holds the sizes of a model that its operations depend on."""

    preset: str
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    ffn: int
    qk_norm: bool
    cast_before_weight: bool = False
    seq_aux: bool = False
    norm_topk_prob: bool = True
    vocab: int = 6400
    experts: int = 0
    experts_per_token: int = 0


_SERIES_2 = {"qk_norm": False, "cast_before_weight": True, "seq_aux": True}
PRESETS = (
    Sizes("minimind2-small", 512, 8, 2, 64, 1408, **_SERIES_2),
    Sizes("minimind2", 768, 8, 2, 96, 2048, **_SERIES_2),
    Sizes("minimind2-moe", 640, 8, 2, 80, 1728, **_SERIES_2, experts=4, experts_per_token=2),
    Sizes("minimind3", 768, 8, 4, 96, 2432, qk_norm=True),
    Sizes("minimind3-moe", 768, 8, 4, 96, 2432, qk_norm=True, experts=4, experts_per_token=1),
)


ODD = Sizes(
    "odd", hidden=33, heads=3, kv_heads=1, head_size=10, ffn=37, qk_norm=False,
    cast_before_weight=True, seq_aux=True, vocab=101, experts=3, experts_per_token=2,
)  # fmt: skip
"""Sizes that are no multiple of a tile: a kernel that lacks a mask reads outside the tensor."""


IGNORED = {"none": 0, "few": 11, "some": 3, "all": 1}
"""The share of labels that are no target, as one in so many; 0 means none."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """Makes the tensors of a case."""

    sizes: Sizes
    tokens: int
    dtype: torch.dtype
    device: str
    scale: float = 1.0
    """The scale of activations."""

    def leaf(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Gives random values with a gradient."""
        values = torch.randn(shape, device=self.device) * scale
        return values.to(self.dtype).requires_grad_()

    def rows(self, *shape: int) -> Tensor:
        """Gives activations of every token."""
        return self.leaf(self.tokens, *shape, scale=self.scale)

    def matrix(self, *shape: int) -> Tensor:
        """Gives weights that keep the size of the values they multiply."""
        return self.leaf(*shape, scale=shape[-1] ** -0.5)

    def arange(self, *bounds: int) -> Tensor:
        return torch.arange(*bounds, device=self.device)

    def labels(self, ignored: str = "none") -> Tensor:
        """Gives an id of the vocabulary for each token, or -100 for the share `ignored` of them:
        none, few, some or all."""
        labels_M = self.arange(self.tokens) * 7 % self.sizes.vocab
        step = IGNORED[ignored]
        if step:
            labels_M[step // 2 :: step] = -100
        return labels_M

    def bytes_of(self, *shape: int) -> int:
        """Gives the bytes of a tensor in the case's dtype."""
        return math.prod(shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Rival:
    """Describes another library's function for a case: the same work, in the layout that it is
    built for."""

    library: str
    """Names the library in tables."""
    function: str
    """The function, or the autograd function whose `apply` is called, as module:name."""
    call: Callable[[Callable[..., Any]], Function]
    """Makes, from the rival's function, a function of `inputs` whose first outputs are those of
    `ours`. Where the case has `uniform_grad`, they may be summed."""
    inputs: Callable[..., tuple[Tensor, ...]] | None = None
    """Makes the rival's inputs from the case's own, by operators that autograd follows; None: they
    are the case's own."""
    waits: bool = False
    """Whether it reads a number from the GPU, which a CUDA graph cannot record."""
    backward_once: bool = False
    """Whether each backward pass needs a new forward pass, because it overwrites what the forward
    pass kept."""


@dataclass(frozen=True, slots=True)
class Case:
    """Holds an operation, its inputs, and its plain form."""

    name: str
    sizes: Sizes
    ours: Function
    plain: Function
    """The plain form in PyTorch, of the same inputs; it also runs in fp64."""
    inputs: tuple[Tensor, ...]
    """The inputs, with and without a gradient."""
    forward_bytes: int
    """The bytes read and written once each, in the case's dtype."""
    backward_bytes: int
    forward_flops: int = 0
    """The flops of matrix products; 0 where memory is the limit."""
    backward_flops: int = 0
    uniform_grad: bool = False
    """Whether the gradients are made in the forward pass."""
    quickest: Function | None = None
    """The plain form to beat, unless it is `plain`."""
    rivals: tuple[Rival, ...] = ()

    def run(self) -> None:
        """Runs our form forward, and backward from gradients of one, which are valid for cases with
        `uniform_grad`, too."""
        outputs = self.ours(*self.inputs)
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])


BOTH = ("forward", "backward")

ERROR_RATIO = 1.5
"""An operation's error may be at most so many times that of the plain form in the same dtype; both
errors are measured against fp64."""
ERROR_SLACK = {
    torch.float32: 2.4e-7,
    torch.float16: 5e-5,
    torch.bfloat16: 4e-4,
    torch.float64: 1e-15,
}
"""The further error that is allowed, relative to the whole result: of two forms that differ only in
their last bits, one may be nearer to fp64 by chance. It is a twentieth of a rounding; in fp32,
where the summands are no more exact than the sum, it is two roundings."""


@dataclass(frozen=True, slots=True)
class Goal:
    """Holds the most µs on an H200, at 16,384 tokens in bf16."""

    case: str
    ways: tuple[str, ...]
    us: Mapping[str, float]
    """The µs by preset."""


class Registers(NamedTuple):
    """Holds the most registers that a thread of a kernel may take, over all dtypes and presets."""

    sm_80: int
    sm_89: int
    sm_90: int
    sm_100: int
    gfx942: int


OPS: dict[str, Op] = {}
"""Every operation by its name: an `Op` enters itself."""


@dataclass(frozen=True, eq=False, repr=False)
class Op:
    """Describes one operation of the package."""

    function: Callable[..., Any]
    reference: Callable[..., Any]
    """The formula in PyTorch, with the same arguments except those that choose how to compute."""
    formula: str
    build: Callable[..., Case]
    """build(inputs, **options) makes one case, of the sizes in `inputs`."""
    tested: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """The values at which to test `tokens`, `scale`, fields of Sizes and options. The tests cover
    every pair of values; sizes without values here are ODD's. A key of several names, "heads
    kv_heads", takes tuples of values that belong together."""
    scales: tuple[float, ...] = ()
    """Other magnitudes of activations to test, each with one row of typical values alone: small
    activations hide errors that the other rows are to show."""
    compiled_for: tuple[str, ...] = ()
    """The sizes in which the presets differ for this operation, as format strings over Sizes."""
    needs_experts: bool = False
    forms: tuple[Form, ...] = ()
    """The bodies of this operation, each in PyTorch and in Triton."""
    tiles: tuple[str, ...] = ()
    """Entries of the tables of tiles that a sweep tries on this operation."""
    registers: Mapping[str, Registers] = field(default_factory=dict)
    """The budget of each of its kernels, by module.kernel."""
    launches: Mapping[str, int | Mapping[str, int]] = field(default_factory=dict)
    """The number of launches of a case's forward and backward pass together at 16,384 tokens, by
    the case's name; by preset where the numbers differ."""
    goals: tuple[Goal, ...] = ()

    def __post_init__(self) -> None:
        OPS[self.name] = self

    def __repr__(self) -> str:
        return f"Op({self.name})"

    @property
    def name(self) -> str:
        return self.function.__name__

    def runs_in(self, sizes: Sizes) -> bool:
        """Tells whether a model of these sizes has the parts that the operation works on."""
        return sizes.experts > 0 or not self.needs_experts

    def tested_case(self, dtype: torch.dtype, device: str, **values: Any) -> Case:
        """Gives the case with these values for the names in `tested`."""
        flat: dict[str, Any] = {}
        for name, value in values.items():
            names = name.split()
            flat |= zip(names, value if len(names) > 1 else (value,), strict=True)
        tokens, scale = flat.pop("tokens", 7), flat.pop("scale", 1.0)
        sizes = {one.name: flat.pop(one.name) for one in fields(Sizes) if one.name in flat}
        return self.build(Inputs(replace(ODD, **sizes), tokens, dtype, device, scale), **flat)


def build_cases(sizes: Sizes, tokens: int, dtype: torch.dtype, device: str) -> Iterator[Case]:
    """Builds a case of each operation that a model of these sizes runs, for benchmarks and the
    compile report."""
    for op in OPS.values():
        if op.runs_in(sizes):
            yield op.build(Inputs(sizes, tokens, dtype, device))

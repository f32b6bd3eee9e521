"""What holds of every operation, each at the values that its `Op` asks for."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from kernel_rows import DTYPES, INTERPRETED, rows_of, summed, typical_row
from minimind_kernels import backend
from minimind_kernels.form import Form, register
from minimind_kernels.op import OPS, Case, Op
from torch import Tensor
from torch.utils.checkpoint import checkpoint

FORMS = {form.name: form for op in OPS.values() for form in op.forms if form.name}
CASES = [
    pytest.param(op, row, id=f"{op.name}-{'-'.join(map(str, row.values()))}")
    for op in OPS.values()
    for row in rows_of(op, DTYPES)
]


def typical_case(op: Op, device: str, dtype: torch.dtype = torch.float32) -> Case:
    return op.tested_case(dtype, device, **typical_row(op))


def results(function: Callable[..., Any], case: Case) -> tuple[Tensor, ...]:
    """Outputs, and the gradients of their sum."""
    outputs = function(*case.inputs)
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    leaves = [t for t in case.inputs if t.requires_grad]
    return *outputs, *torch.autograd.grad(sum(o.sum() for o in outputs), leaves)


@pytest.mark.parametrize(("op", "row"), CASES)
def test_as_accurate_as_the_plain_form(op, row, device, assert_as_accurate):
    case = op.tested_case(device=device, **row)
    assert_as_accurate(summed(case.ours, case), summed(case.plain, case), *case.inputs)


@pytest.mark.parametrize("form", ["ours", "plain"])
@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_gradients_in_fp64(op, form):
    if backend.kernels_setting() == "triton":
        pytest.skip("a Triton body takes no fp64, and the plain form is tested where none runs")
    case = typical_case(op, "cpu", torch.float64)
    torch.autograd.gradcheck(summed(getattr(case, form), case), case.inputs)


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_no_gradient_wanted(op, device):
    case = typical_case(op, device)
    with torch.inference_mode():
        found = case.ours(*case.inputs)
    torch.testing.assert_close(found, case.plain(*case.inputs))


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_compiled_whole_with_gradients(op, device):
    case = typical_case(op, device)
    compiled = torch.compile(case.ours, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(results(compiled, case), results(case.ours, case))


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_recomputed(op, device):
    """Under activation checkpointing, where a backward may read what was kept only once."""
    case = typical_case(op, device)

    def recomputed(*inputs: Tensor) -> Any:
        return checkpoint(case.ours, *inputs, use_reentrant=False)

    for again, once in zip(results(recomputed, case), results(case.ours, case), strict=True):
        assert torch.equal(again, once)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_body_and_its_triton_function_have_one_signature(form):
    function = form.triton
    assert function.__name__ == form.name
    assert list(inspect.signature(function).parameters) == list(
        inspect.signature(form.body).parameters
    )
    assert set(form.overwrites) <= set(inspect.signature(form.body).parameters)


def test_every_form_is_of_one_operation():
    assert len(FORMS) == sum(len(op.forms) for op in OPS.values())


def calls_of(op: Op, device: str) -> dict[Any, tuple[Any, Any]]:
    """How each body is called over all values that the operation is tested at, once for each choice
    of what may be left out."""
    found: dict[Any, tuple[Any, Any]] = {}
    plain = Form.__call__

    def note(self: Form, *tensors: Any, generated: bool | None = None, **constants: Any) -> Any:
        flags = tuple(v for v in constants.values() if isinstance(v, bool))
        key = (self.name, tuple(t is None for t in tensors), flags)
        copies = tuple(t if t is None else t.detach().clone() for t in tensors)
        if self.name and tensors[0].numel():
            found.setdefault(key, (copies, constants))
        return plain(self, *tensors, generated=generated, **constants)

    with mock.patch.object(Form, "__call__", note):
        for row in rows_of(op):
            case = op.tested_case(device=device, **row)
            results(summed(case.ours, case), case)
            with torch.no_grad():
                case.ours(*case.inputs)
    return found


@pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(), reason="needs Triton's interpreter or a GPU"
)
@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_operators(op):
    """What torch.compile sees; no gradient is registered: the autograd.Function around has it."""
    calls = calls_of(op, "cuda" if torch.cuda.is_available() else "cpu")
    assert {name for name, *_ in calls} >= {form.name for form in op.forms if form.name}
    for (name, *_), (tensors, constants) in calls.items():
        register(name)
        operator = getattr(torch.ops.minimind_kernels, name)
        torch.library.opcheck(
            operator, tensors, constants, test_utils=("test_schema", "test_faketensor")
        )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_many_rows(op, assert_as_accurate):
    """70,000, where grids grow long."""
    sizes = {"hidden": 768, "ffn": 2432, "heads kv_heads head_size": (8, 4, 96), "vocab": 1600}
    if op.needs_experts:
        sizes |= {"hidden": 128, "ffn": 256}
    case = op.tested_case(torch.bfloat16, "cuda", tokens=70_000, **sizes)
    assert_as_accurate(summed(case.ours, case), summed(case.plain, case), *case.inputs)


def test_triton_impl_knows_nothing_of_the_package_around_it():
    """A form imports it when first called: that import would close a circle."""
    for path in (Path(inspect.getfile(backend)).parent / "triton_impl").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level < 2, path
            if isinstance(node, ast.ImportFrom | ast.Import):
                assert "minimind" not in ast.unparse(node), path

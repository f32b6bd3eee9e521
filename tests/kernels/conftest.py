"""How the kernels are tested: against fp64, beside the plain PyTorch form, on every device there
is; and, in the process that test_triton_interpreter.py starts, in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from kernel_rows import INTERPRETED, choose
from minimind_kernels.op import ERROR_RATIO, ERROR_SLACK
from torch import Tensor

Function = Callable[..., Tensor | tuple[Tensor, ...]]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves of each test so many cases that any two values of its parameters still meet. The
    interpreter does without bf16, which it computes wrongly."""
    left_out: list[pytest.Item] = []
    if INTERPRETED:
        left_out = [i for i in items if "bfloat16" in i.name or "cuda" in i.name]
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        case = getattr(item, "callspec", None)
        if case and Path(__file__).parent in item.path.parents and item not in left_out:
            # Each device by itself: most machines have the CPU alone.
            test = f"{item.nodeid.partition('[')[0]} on {case.params.get('device')}"
            tests.setdefault(test, []).append(item)
    for cases in tests.values():
        chosen = choose([item.callspec.params for item in cases])  # type: ignore[attr-defined]
        left_out += [item for place, item in enumerate(cases) if place not in chosen]
    config.hook.pytest_deselected(items=left_out)
    kept = dict.fromkeys(items)
    for item in left_out:
        del kept[item]
    items[:] = kept


@pytest.fixture(autouse=True)
def _same_numbers():
    torch.manual_seed(1)


@pytest.fixture(autouse=True)
def _new_memory_holds_nan():
    """What a kernel forgets to write shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    return request.param


@pytest.fixture(params=["float32", "bfloat16", "float16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return getattr(torch, request.param)


@pytest.fixture
def randn(device: str, dtype: torch.dtype) -> Callable[..., Tensor]:
    """Random leaves, of one seed a test."""
    generator = torch.Generator().manual_seed(1)

    def make(*shape: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(shape, generator=generator) * scale
        return values.to(device, dtype).requires_grad_()

    return make


@pytest.fixture
def assert_as_accurate() -> Callable[..., None]:
    return _assert_as_accurate


def _assert_as_accurate(
    function: Function, reference: Function, *inputs: Tensor, ratio: float = ERROR_RATIO
) -> None:
    """Each output and gradient of `function` errs at most `ratio` times as much as `reference`
    does in the same dtype, both measured against `reference` in fp64; it is finite; and it is the
    same on a second run."""
    wide = [t.detach().double().requires_grad_(t.requires_grad) for t in inputs]
    narrow_outputs, wide_outputs = _outputs(reference, inputs), _outputs(reference, wide)
    generator = torch.Generator().manual_seed(7)
    upstream = [
        torch.randn(o.shape, generator=generator).to(o.device, o.dtype) for o in narrow_outputs
    ]
    exact = _run(wide_outputs, wide, upstream)
    plain = _run(narrow_outputs, inputs, upstream)
    ours, again = (_run(_outputs(function, inputs), inputs, upstream) for _ in range(2))
    for i, (e, p, o, a) in enumerate(zip(exact, plain, ours, again, strict=True)):
        assert o.dtype == p.dtype, f"result {i} is {o.dtype}, the plain form's {p.dtype}"
        assert o.shape == p.shape, f"result {i} is {o.shape}, the plain form's {p.shape}"
        assert o.isfinite().all(), f"result {i} is not finite"
        assert torch.equal(o, a), f"result {i} differs on a second run"
        error, plain_error = ((t.double() - e).norm().item() for t in (o, p))
        assert error <= ratio * plain_error + ERROR_SLACK[o.dtype] * e.norm().item(), (
            f"result {i} errs by {error:.3g} of {e.norm().item():.3g}, "
            f"the plain form by {plain_error:.3g}"
        )


def _outputs(function: Function, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    outputs = function(*inputs)
    return (outputs,) if isinstance(outputs, Tensor) else outputs


def _run(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], upstream: Sequence[Tensor]
) -> list[Tensor]:
    """All outputs, then the gradients of the inputs that require one."""
    leaves = [t for t in inputs if t.requires_grad]
    if not leaves:
        return list(outputs)
    received = [g.to(o.dtype) for g, o in zip(upstream, outputs, strict=True)]
    return [o.detach() for o in outputs] + list(torch.autograd.grad(outputs, leaves, received))

"""What shows only at sizes that a GPU holds: offsets that no 32 bits count, an order of very many
slots. The same checks run at small sizes on a CPU, so that they can be trusted there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import minimind_kernels as K
import pytest
import torch
from kernel_rows import INTERPRETED
from minimind_kernels.op import OPS, Case, Op
from torch import Tensor

pytestmark = pytest.mark.skipif(INTERPRETED, reason="other tests interpret the bodies, at less")

BEYOND = 2**31 + 2**20
MEMORY_NEEDED = 110 << 30
"""Of the plain form, with its copies in fp32."""
SIZES = {"hidden": 1024, "ffn": 1216, "heads kv_heads head_size": (8, 4, 96), "vocab": 67}
SIZES_OF_EXPERTS = {"hidden": 1024, "ffn": 48, "experts": 256, "experts_per_token": 2}


def case_of(op: Op, num_elements: int, dtype: torch.dtype, device: str) -> Case:
    """One with so many elements in its largest tensor of tokens."""
    sizes = SIZES_OF_EXPERTS if op.needs_experts else SIZES

    def build(tokens: int, device: str) -> Case:
        return op.tested_case(dtype, device, tokens=tokens, **sizes)

    few, more = (build(tokens, "meta").inputs for tokens in (64, 128))
    width = max((b.numel() - a.numel()) // 64 for a, b in zip(few, more, strict=True))
    return build(-(-num_elements // width), device)


def outputs_and_gradients(function: Callable[..., Any], case: Case) -> list[Tensor]:
    outputs = function(*case.inputs)
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    leaves = [t for t in case.inputs if t.requires_grad]
    torch.manual_seed(3)
    # Some cases ask for one gradient for all tokens.
    make = (lambda o: torch.full_like(o, 0.5)) if case.uniform_grad else torch.randn_like
    upstream = [make(output) for output in outputs]
    gradients = torch.autograd.grad(outputs, leaves, upstream)
    return [*(output.detach() for output in outputs), *gradients]


def assert_alike(found: Tensor, wanted: Tensor, piece: int, tolerance: float) -> None:
    """In every piece of so many elements, so that one that lies elsewhere is not lost among all."""
    assert found.shape == wanted.shape
    pieces = zip(found.flatten().split(piece), wanted.flatten().split(piece), strict=True)
    shares = torch.stack([
        torch.stack(((f.float() - w.float()).norm(), w.float().norm())) for f, w in pieces
    ])  # fmt: skip
    errors, norms = shares.unbind(1)
    # A piece of an expert whom few tokens chose is small beside the others.
    bad = ~(errors <= tolerance * torch.maximum(norms, 0.1 * norms.max()))
    assert not bad.any(), f"{found.shape}: pieces {bad.nonzero().flatten().tolist()[:20]} differ"


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_the_check_of_large_tensors(op: Op):
    case = case_of(op, 2**15, torch.float32, "cpu")
    assert max(t.numel() for t in case.inputs) >= 2**15
    ours, plain = (outputs_and_gradients(f, case) for f in (case.ours, case.plain))
    for found, wanted in zip(ours, plain, strict=True):
        assert_alike(found, wanted, 2**10, 1e-4)
    moved = ours[0].flatten().roll(1).view_as(ours[0])
    if moved.numel() > 1:
        with pytest.raises(AssertionError, match="differ"):
            assert_alike(moved, plain[0], 2**10, 1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_more_elements_than_31_bits_count(op: Op):
    if torch.cuda.mem_get_info()[0] < MEMORY_NEEDED:
        pytest.skip(f"needs {MEMORY_NEEDED >> 30} GiB of free memory on the GPU")
    case = case_of(op, BEYOND, torch.bfloat16, "cuda")
    assert max(t.numel() for t in case.inputs) > 2**31
    ours = outputs_and_gradients(case.ours, case)
    plain = outputs_and_gradients(case.plain, case)
    for found, wanted in zip(ours, plain, strict=True):
        assert_alike(found, wanted, 2**20, 0.03)
    del ours, plain, case
    torch.cuda.empty_cache()


NUM_TOKENS = [
    pytest.param("cpu", 5000, id="cpu"),
    pytest.param("cuda", 131_072, id="cuda", marks=pytest.mark.gpu),
]


@pytest.mark.parametrize(("place", "num_tokens"), NUM_TOKENS)
@pytest.mark.parametrize(("num_experts", "num_slots"), [(4, 1), (4, 2), (64, 8)])
@pytest.mark.parametrize("one_document", [True, False])
def test_the_order_of_moe_routing_is_a_permutation(
    place: str, num_tokens: int, num_experts: int, num_slots: int, one_document: bool
):
    """By expert, and among an expert's slots as they came."""
    logits = torch.randn(num_tokens, num_experts, device=place, dtype=torch.float32)
    edges = [0, num_tokens] if one_document else [*range(0, num_tokens, 97), num_tokens]
    routing = K.moe_routing(
        logits, num_slots, norm_topk_prob=True, seq_aux=True,
        cu_seqlens=torch.tensor(edges, dtype=torch.int32, device=place),
    )  # fmt: skip
    order, experts = routing.order_P.long(), routing.experts_MS.flatten().long()
    assert torch.equal(torch.bincount(order, minlength=len(experts)), torch.ones_like(experts))
    assert (experts[order] * len(experts) + order).diff().gt(0).all()
    counts = torch.bincount(experts, minlength=num_experts)
    assert torch.equal(routing.counts_E.long(), counts)
    assert torch.equal(routing.offsets_E1[1:].long(), counts.cumsum(0))
    assert routing.offsets_E1[0] == 0

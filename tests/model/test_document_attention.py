"""Attention inside packed documents against plain attention of each document alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_attention import CPU, bounds, documents, plain_attention, random_qkv
from torch import Tensor

from minimind.model import document_attention
from minimind.model.document_attention import (
    FLASH_FROM,
    BucketPlan,
    PaddedPlan,
    VarlenPlan,
    plan_attention,
)


def assert_as_plain(
    lengths: Sequence[int],
    heads: int,
    kv_heads: int,
    atol: float = 2e-5,
    size: int = 8,
    padded: bool = False,
) -> None:
    """Output and gradients in fp32 against fp64."""
    cu = bounds(lengths)
    tensors = random_qkv(cu[-1], heads, kv_heads, size)
    exact = tuple(t.detach().double().requires_grad_() for t in tensors)
    plan = PaddedPlan.build(cu, CPU) if padded else BucketPlan.build(cu, heads, CPU)
    out = plan.attend(*tensors)
    expected = plain_attention(*exact, cu)
    torch.testing.assert_close(out.double(), expected, atol=atol, rtol=atol)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(5))
    found = torch.autograd.grad(out, tensors, upstream)
    wanted = torch.autograd.grad(expected, exact, upstream.double())
    for name, f, w in zip("qkv", found, wanted, strict=True):
        torch.testing.assert_close(
            f.double(), w, atol=atol, rtol=atol, msg=lambda m, n=name: f"{n}: {m}"
        )


MIXES = {
    "one token": [1],
    "single tokens": [1, 1, 1],
    "odd lengths": [3, 17, 1, 5, 33, 2],
    "all alike": [7] * 9,
    "rising": list(range(1, 20)),
    "empty ones between": [4, 0, 6, 0],
    "long ones between": [20, FLASH_FROM, 1, FLASH_FROM + 33, 9],
    "only a long one": [FLASH_FROM + 1],
    "just below flash": [FLASH_FROM - 1, 2],
    "many": [1 + (i * 7) % 23 for i in range(100)],
}


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("mix", MIXES)
def test_packed_documents_attend_as_each_alone(mix: str, heads: int, kv_heads: int):
    assert_as_plain(MIXES[mix], heads, kv_heads)


@pytest.mark.parametrize("size", [8, 10, 12, 264])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
def test_padded_documents_attend_as_each_alone(heads: int, kv_heads: int, size: int):
    """At every head size, those too that flash attention does not take."""
    assert_as_plain([3, 17, 1, 5, 0, 33, 2, 25], heads, kv_heads, size=size, padded=True)


@pytest.mark.parametrize("mix", MIXES)
def test_padding_any_mix_changes_nothing(mix: str):
    assert_as_plain(MIXES[mix], 4, 2, padded=True)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_padding_reads_no_value_back(device: str):
    """Of a tensor without storage nothing could be read."""
    plan = PaddedPlan.build(bounds([3, 17, 1, 5]), torch.device(device))
    tensors = [t.detach().to(device).requires_grad_() for t in random_qkv(26, 4, 2)]
    out = plan.attend(*tensors)
    grads = torch.autograd.grad(out, tensors, torch.ones_like(out))
    assert out.shape == tensors[0].shape
    assert [g.shape for g in grads] == [t.shape for t in tensors]


@pytest.mark.parametrize("scores", [1, 100, 5000])
def test_small_buckets_change_nothing(monkeypatch: pytest.MonkeyPatch, scores: int):
    monkeypatch.setattr(document_attention, "SCORES_PER_BUCKET", scores)
    lengths = [3, 17, 1, 5, 33, 2, 17, 17, 16]
    plan = BucketPlan.build(bounds(lengths), 4, CPU)
    assert len(plan.buckets) > 1
    assert_as_plain(lengths, 4, 2)


@pytest.mark.parametrize("flash_from", [1, 6, 17])
def test_where_flash_begins_changes_nothing(monkeypatch: pytest.MonkeyPatch, flash_from: int):
    monkeypatch.setattr(document_attention, "FLASH_FROM", flash_from)
    lengths = [3, 17, 1, 5, 33, 6]
    plan = BucketPlan.build(bounds(lengths), 4, CPU)
    assert len(plan.long) == sum(n >= flash_from for n in lengths)
    assert_as_plain(lengths, 4, 2)


@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(sum),
    heads=st.sampled_from([(2, 1), (4, 2), (3, 3), (6, 2)]),
    scores=st.sampled_from([1, 2000, 2**19]),
    flash_from=st.sampled_from([8, 512]),
)
@settings(max_examples=20)
def test_any_documents(lengths: list[int], heads: tuple[int, int], scores: int, flash_from: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(document_attention, "SCORES_PER_BUCKET", scores)
        patch.setattr(document_attention, "FLASH_FROM", flash_from)
        assert_as_plain(lengths, *heads, size=4)


def test_gradients_are_those_of_the_function():
    cu = bounds([3, 1, 4])
    plan = BucketPlan.build(cu, 4, CPU)
    tensors = random_qkv(cu[-1], 4, 2, size=2, dtype=torch.float64)
    assert torch.autograd.gradcheck(plan.attend, tensors)


def test_only_the_gradients_that_are_wanted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(document_attention, "FLASH_FROM", 4)
    cu = bounds([3, 5])
    q, k, v = random_qkv(cu[-1], 4, 2)
    out = BucketPlan.build(cu, 4, CPU).attend(q.detach(), k.detach(), v)
    (grad,) = torch.autograd.grad(out.sum(), (v,))
    expected = plain_attention(q, k, v, cu)
    torch.testing.assert_close(grad, torch.autograd.grad(expected.sum(), (v,))[0])


def test_keys_are_never_repeated():
    """Gathered keys are as many as there are key heads, not query heads."""
    plan = BucketPlan.build([0, 6, 12], 8, CPU)
    q, k, _ = random_qkv(12, 8, 2)
    (bucket,) = plan.buckets
    assert bucket.gather(k, 2).shape == (2 * 2, 6, 8)
    assert bucket.gather(q, 2).shape == (2 * 2, 4 * 6, 8)


def test_large_scores_stay_finite():
    cu = bounds([5, 3])
    q, k, v = random_qkv(8, 2, 2)
    out = BucketPlan.build(cu, 2, CPU).attend(q * 100, k * 100, v)
    grads = torch.autograd.grad(out.sum(), (q, k, v))
    assert all(t.isfinite().all() for t in (out, *grads))


@pytest.mark.parametrize("padded", [False, True])
def test_bf16_rounds_no_more_than_plain_bf16(padded: bool):
    cu = bounds([9, 4, 6])
    tensors = random_qkv(cu[-1], 4, 2, dtype=torch.bfloat16)
    exact = plain_attention(*(t.detach().double() for t in tensors), cu)
    out = (PaddedPlan.build(cu, CPU) if padded else BucketPlan.build(cu, 4, CPU)).attend(*tensors)
    plain = plain_attention(*(t.detach() for t in tensors), cu)
    assert out.dtype == torch.bfloat16
    error, plain_error = ((t.double() - exact).norm() for t in (out, plain))
    assert error <= 1.5 * plain_error


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        ("cpu", torch.float32),
        pytest.param("cuda", torch.float16, marks=pytest.mark.gpu),
        pytest.param("cuda", torch.bfloat16, marks=pytest.mark.gpu),
    ],
)
@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 8), (8, 2), (8, 1)])
@pytest.mark.parametrize("size", [64, 80, 96, 128])
def test_values_that_are_a_view_of_the_packed_product(
    size: int, heads: int, kv_heads: int, device: str, dtype: torch.dtype
):
    """As a layer has them, at the presets' head sizes and a larger one; on a GPU by flash."""
    cu = bounds([3, 17, 1, 600, 33])
    q, k, v = (t.detach().to(device) for t in random_qkv(cu[-1], heads, kv_heads, size, dtype))
    packed = torch.cat([t.flatten(1) for t in (q, k, v)], dim=1).requires_grad_()
    tensors = (q.requires_grad_(), k.requires_grad_(), packed)
    exact = tuple(t.detach().double().requires_grad_() for t in (q, k, v))

    def values_of(packed: Tensor) -> Tensor:
        return packed[:, -kv_heads * size :].unflatten(1, (kv_heads, size))

    plan = plan_attention(documents(cu, device), heads, size, dtype)
    assert isinstance(plan, BucketPlan if device == "cpu" else VarlenPlan)
    view = values_of(packed)
    assert view.stride() == ((heads + 2 * kv_heads) * size, size, 1)
    out, expected = plan.attend(q, k, view), plain_attention(*exact, cu)
    upstream = torch.randn_like(out)
    *found, grad_packed = (out, *torch.autograd.grad(out, tensors, upstream))
    wanted = (expected, *torch.autograd.grad(expected, exact, upstream.double()))
    assert not grad_packed[:, : -kv_heads * size].any()
    for f, w in zip((*found, values_of(grad_packed)), wanted, strict=True):
        assert (f.double() - w).norm() <= (1e-5 if device == "cpu" else 0.02) * w.norm()


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "size"),
    [(torch.float32, 64), (torch.float16, 64), (torch.bfloat16, 12), (torch.bfloat16, 264)],
)
def test_padded_documents_on_a_gpu(dtype: torch.dtype, size: int):
    """Without one wait for the device, forward and backward."""
    cu = bounds([3, 17, 1, 600, 33])
    tensors = tuple(
        t.detach().cuda().requires_grad_() for t in random_qkv(cu[-1], 8, 2, size, dtype)
    )
    exact = tuple(t.detach().double().requires_grad_() for t in tensors)
    upstream = torch.randn(cu[-1], 8, size, device="cuda", dtype=dtype)
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = PaddedPlan.build(cu, torch.device("cuda", 0)).attend(*tensors)
        found = (out, *torch.autograd.grad(out, tensors, upstream))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = plain_attention(*exact, cu)
    wanted = (expected, *torch.autograd.grad(expected, exact, upstream.double()))
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    for f, w in zip(found, wanted, strict=True):
        assert (f.double() - w).norm() <= tolerance * w.norm()

"""Attention inside packed documents against plain attention of each document alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minimind.model import document_attention
from minimind.model.document_attention import (
    FLASH_FROM,
    BucketPlan,
    PaddedPlan,
    VarlenPlan,
    plan_attention,
    varlen_options,
)

Tensors = tuple[Tensor, Tensor, Tensor]
CPU = torch.device("cpu")


def bounds(lengths: Sequence[int]) -> list[int]:
    return [0, *itertools.accumulate(lengths)]


def random_qkv(
    tokens: int, heads: int, kv_heads: int, size: int = 8, dtype: torch.dtype = torch.float32
) -> Tensors:
    generator = torch.Generator().manual_seed(tokens)
    q, k, v = (
        torch.randn(tokens, n, size, generator=generator, dtype=torch.float64)
        for n in (heads, kv_heads, kv_heads)
    )
    return q.to(dtype).requires_grad_(), k.to(dtype).requires_grad_(), v.to(dtype).requires_grad_()


def plain_attention(q_MNH: Tensor, k_MKH: Tensor, v_MKH: Tensor, cu: Sequence[int]) -> Tensor:
    """softmax(q·kᵀ/√H)·v document by document, the keys repeated for their query heads."""
    group = q_MNH.shape[1] // k_MKH.shape[1]
    k_MNH, v_MNH = (x.repeat_interleave(group, dim=1) for x in (k_MKH, v_MKH))
    pieces = []
    for start, stop in itertools.pairwise(cu):
        q, k, v = (x[start:stop].transpose(0, 1) for x in (q_MNH, k_MNH, v_MNH))
        hidden = torch.ones(stop - start, stop - start, dtype=torch.bool).triu(1).to(q.device)
        scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[2])
        pieces.append((scores.masked_fill(hidden, -math.inf).softmax(-1) @ v).transpose(0, 1))
    return torch.cat(pieces)


def documents(cu: Sequence[int], device: str = "cpu") -> Any:
    """What a plan asks a batch for."""
    cu_seqlens = torch.tensor(cu, dtype=torch.int32, device=device)
    longest = max(b - a for a, b in itertools.pairwise(cu))
    return SimpleNamespace(cu_seqlens=cu_seqlens, bounds=tuple(cu), max_len=longest)


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


def test_padded_documents_are_filled_and_stand_apart():
    lengths = [3, 17, 1, 45, 5, 33, 2, 0, 29, 30, 44]
    plan = PaddedPlan.build(bounds(lengths), CPU)
    total = sum(documents * length for documents, length in plan.shapes)
    assert plan.place_M.unique().numel() == sum(lengths)
    assert plan.place_M.max() < total
    assert plan.shapes[0] == (2, 45)  # 45 and 44; 33 fills too little of it
    assert sum(lengths) >= document_attention.LEAST_FILLED * total
    first = plan.place_M[torch.tensor(bounds(lengths)[:-1])[torch.tensor(lengths) > 0]]
    starts = {at for (n, length), end in zip(plan.shapes, ends(plan), strict=True)
              for at in range(end - n * length, end, length)}  # fmt: skip
    assert set(first.tolist()) == starts


def ends(plan: PaddedPlan) -> list[int]:
    return list(itertools.accumulate(n * length for n, length in plan.shapes))


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
@settings(max_examples=20, deadline=None)
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


def test_every_token_is_in_one_bucket_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(document_attention, "FLASH_FROM", 30)
    monkeypatch.setattr(document_attention, "SCORES_PER_BUCKET", 3000)
    lengths = [3, 17, 1, 45, 5, 33, 2, 0, 29, 30]
    cu = bounds(lengths)
    plan = BucketPlan.build(cu, 4, CPU)
    tokens = [t for bucket in plan.buckets for t in bucket.tokens.tolist()]
    tokens += [t for start, stop in plan.long for t in range(start, stop)]
    assert sorted(tokens) == list(range(cu[-1]))
    for bucket in plan.buckets:
        documents, length = bucket.gather_BL.shape
        assert documents == 1 or documents * 4 * length * length <= 3000
        assert torch.equal(bucket.gather_BL.flatten()[bucket.places], bucket.tokens)


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


def test_the_plan_of_the_cpu():
    for dtype in (torch.float32, torch.bfloat16):
        assert isinstance(plan_attention(documents([0, 4]), 2, 8, dtype), BucketPlan)


@pytest.mark.parametrize(
    ("dtype", "head_size", "capability", "hip", "kind"),
    [
        (torch.bfloat16, 64, (9, 0), None, VarlenPlan),
        (torch.float16, 64, (8, 0), None, VarlenPlan),
        (torch.float16, 64, (7, 5), None, PaddedPlan),
        (torch.float32, 64, (9, 0), None, PaddedPlan),
        (torch.bfloat16, 12, (9, 0), None, PaddedPlan),
        (torch.bfloat16, 320, (9, 0), None, PaddedPlan),
        (torch.bfloat16, 64, (7, 5), "6.4", VarlenPlan),
    ],
)
def test_the_plan_of_a_gpu(
    dtype: torch.dtype,
    head_size: int,
    capability: tuple[int, int],
    hip: str | None,
    kind: type,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    """What it lays out is not asked for here: it would go to the device."""
    made: list[tuple[int, ...]] = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(
        PaddedPlan, "build", lambda cu, device: made.append(cu) or PaddedPlan(torch.empty(0), ())
    )
    document_attention._say_once.cache_clear()
    batch = documents([0, 4])
    batch.cu_seqlens = SimpleNamespace(device=torch.device("cuda", 0))
    with caplog.at_level("INFO", logger="minimind"):
        plans = [plan_attention(batch, 2, head_size, dtype) for _ in range(2)]
    assert {type(plan) for plan in plans} == {kind}
    assert made == ([(0, 4)] * 2 if kind is PaddedPlan else [])
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("attention: ")
    assert ("padded" in caplog.messages[0]) is (kind is PaddedPlan)


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


def until_2_10(q, k, v, cu_q, cu_k, max_q, max_k, is_causal=False):
    assert is_causal
    return q.clone()


def of_2_11(q, k, v, cu_q, cu_k, max_q, max_k, window_size=(-1, -1)):
    assert window_size == (-1, 0)
    return q.clone()


def from_2_12(q, k, v, cu_q, cu_k, max_q, max_k, window_size=(-1, -1), enable_gqa=False):
    assert window_size == (-1, 0)
    assert enable_gqa
    return q.clone()


@pytest.mark.parametrize("varlen_attn", [until_2_10, of_2_11, from_2_12])
def test_each_pytorch_is_asked_for_causal_attention_its_way(
    varlen_attn: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
):
    """With the key heads there are, whatever it calls that."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    varlen_options.cache_clear()
    q, k, v = random_qkv(20, 8, 2)
    cu = torch.tensor(bounds([13, 7]), dtype=torch.int32)
    try:
        assert torch.equal(VarlenPlan(cu, 13).attend(q, k, v), q)
    finally:
        varlen_options.cache_clear()


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

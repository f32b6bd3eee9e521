"""How documents are laid out for attention, by device, length and version of PyTorch."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from plain_attention import CPU, bounds, documents, random_qkv
from torch import Tensor

from minimind.model import document_attention
from minimind.model.document_attention import (
    BucketPlan,
    PaddedPlan,
    VarlenPlan,
    plan_attention,
    varlen_options,
)


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

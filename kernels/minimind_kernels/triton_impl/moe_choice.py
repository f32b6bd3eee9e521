"""Finds the tokens of a program of MoE routing, and chooses experts by their logits."""

from __future__ import annotations

import triton
import triton.language as tl

_DOCUMENTS = tl.constexpr(256)
"""The documents whose starts a program looks at together."""


@triton.jit
def find_part(cu_seqlens_ptr, part, num_documents, block_tokens):
    """Gives (document, begin, end) of a part of a document in one block (see moe_routing.py); the
    end is not beyond the begin where block and document meet nowhere."""
    found = tl.zeros((_DOCUMENTS,), tl.int32)
    for first in range(0, num_documents, _DOCUMENTS):
        documents = first + tl.arange(0, _DOCUMENTS)
        is_document = documents < num_documents
        starts = tl.load(cu_seqlens_ptr + documents, is_document, other=0)
        found += (is_document & (starts // block_tokens + documents <= part)).to(tl.int32)
    document = tl.sum(found, axis=0) - 1
    begin = (part - document) * block_tokens
    end = tl.minimum(begin + block_tokens, tl.load(cu_seqlens_ptr + document + 1))
    begin = tl.maximum(begin, tl.load(cu_seqlens_ptr + document))
    return document, begin, end


@triton.jit
def load_logits(logits_ptr, rows, in_range, NUM_EXPERTS: tl.constexpr, BLOCK_EXPERTS: tl.constexpr):
    """Loads logits in fp32, minus infinity beyond the last expert."""
    experts = tl.arange(0, BLOCK_EXPERTS)[None, :]
    mask = in_range[:, None] & (experts < NUM_EXPERTS)
    logits = tl.load(logits_ptr + rows[:, None] * NUM_EXPERTS + experts, mask, other=0.0)
    return tl.where(experts < NUM_EXPERTS, logits.to(tl.float32), float("-inf"))


@triton.jit
def softmax(logits):
    """Gives the experts' probabilities of each row."""
    exps = tl.exp(logits - tl.max(logits, axis=1)[:, None])
    return tl.div_rn(exps, tl.sum(exps, axis=1)[:, None] + tl.zeros_like(exps))


@triton.jit
def rank_experts(
    logits, NUM_EXPERTS: tl.constexpr, NUM_SLOTS: tl.constexpr, BLOCK_EXPERTS: tl.constexpr
):
    """Gives s + 1 for the expert of slot s, 0 for an expert not chosen. Of equal logits the lower
    number wins; NaN counts as minus infinity, so that a diverged model still reads only its own
    memory."""
    experts = tl.arange(0, BLOCK_EXPERTS)[None, :]
    logits = tl.where(logits == logits, logits, float("-inf"))
    rank = tl.zeros_like(logits).to(tl.int32)
    for slot in tl.static_range(NUM_SLOTS):
        is_free = (rank == 0) & (experts < NUM_EXPERTS)
        best = tl.max(tl.where(is_free, logits, float("-inf")), axis=1)[:, None]
        first = tl.min(tl.where(is_free & (logits == best), experts, BLOCK_EXPERTS), axis=1)
        rank = tl.where(experts == first[:, None], slot + 1, rank)
    return rank

"""What the routers report: counted where the experts take their tokens."""

from __future__ import annotations

from dataclasses import replace

import minimind_kernels as K
import pytest
import torch
from minimind_kernels import Routing
from small_models import pack, random_documents

from minimind.model.router_report import RouterReport
from minimind.types import Batch


def batch_and_routing(seed: int = 0) -> tuple[Batch, Routing]:
    """Fourteen tokens in two rows with 4 of padding, two of five experts each."""
    batch = pack([random_documents([3, 4]), random_documents([7])], seq_len=9)
    logits_ME = torch.randn(18, 5, generator=torch.Generator().manual_seed(seed))
    return batch, K.moe_routing(
        logits_ME, 2, norm_topk_prob=True, is_counted_M=batch.is_token_BT.flatten()
    )


def test_the_load_counts_tokens_without_padding():
    batch, routing = batch_and_routing()
    other = batch_and_routing(seed=1)[1]
    report = RouterReport(batch)
    report.add(routing)
    report.add(other)
    tokens_LE, dropped = report.count_load()
    aux_loss = report.sum_up(0.5)
    for layer, expected in enumerate((routing, other)):
        counts = [0] * 5
        for experts, real in zip(
            expected.experts_MS.tolist(), batch.is_token_BT.flatten().tolist(), strict=True
        ):
            for expert in experts:
                counts[expert] += int(real)
        assert tokens_LE[layer].tolist() == counts
    assert tokens_LE.sum().item() == 2 * 2 * 14
    assert dropped.item() == 0
    expected_aux = 0.5 * (routing.aux_loss + other.aux_loss)
    assert aux_loss.item() == pytest.approx(expected_aux.item())


def test_a_token_that_no_expert_takes_is_counted_as_dropped():
    batch, routing = batch_and_routing()
    # The last two slots of the last expert are left out.
    offsets_E1 = routing.offsets_E1.clone()
    offsets_E1[-1] -= 2
    left_out = (routing.order_P[-2:] // 2).tolist()
    real = batch.is_token_BT.flatten()[left_out].sum().item()
    report = RouterReport(batch)
    report.add(replace(routing, offsets_E1=offsets_E1))
    assert report.count_load()[1].item() == real > 0


def test_what_comes_after_the_sum_is_ignored():
    batch, routing = batch_and_routing()
    report = RouterReport(batch)
    report.add(routing)
    assert report.is_open
    aux_loss = report.sum_up(1.0)
    assert not report.is_open
    report.add(routing)
    with pytest.raises(AssertionError):
        report.sum_up(1.0)
    assert torch.equal(aux_loss, routing.aux_loss)

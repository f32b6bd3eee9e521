"""Dropout, and activations that are computed again in the backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_models import (
    EXPERTS,
    gradients,
    logits_of,
    loss_of,
    pack,
    random_documents,
    random_model,
    reference_logits,
    small_config,
)
from torch import Tensor


@pytest.mark.parametrize("experts", [{}, EXPERTS[0]], ids=["dense", "experts"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputed_activations_give_the_same_gradients_bitwise(
    dropout: float, experts: dict[str, Any]
):
    model = random_model(small_config(dropout=dropout, **experts)).train()
    batch = pack([random_documents([9, 3, 14])])
    results = []
    for recompute in (False, True):
        model.activation_checkpointing = recompute
        torch.manual_seed(5)
        loss = loss_of(model, batch)
        results.append((loss, gradients(model, loss)))
    (loss, grads), (again, grads_again) = results
    assert torch.equal(loss, again)
    for name in grads:
        assert torch.equal(grads[name], grads_again[name]), name


def test_recomputing_saves_fewer_activations():
    def saved_bytes(recompute: bool) -> int:
        model = random_model(small_config(num_hidden_layers=4)).train()
        model.activation_checkpointing = recompute
        held: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = loss_of(model, pack([random_documents([256])]))
        loss.backward()
        parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
        return sum(size for at, size in held.items() if at not in parameters)

    assert saved_bytes(True) < 0.5 * saved_bytes(False)


def test_dropout_stands_after_embedding_attention_and_feed_forward():
    """The plain model, with dropout there and nowhere else, draws the same numbers."""
    model = random_model(small_config(dropout=0.4)).train()
    (document,) = random_documents([11])
    torch.manual_seed(3)
    found = logits_of(model, pack([[document]]))
    torch.manual_seed(3)

    def dropout(x: Tensor) -> Tensor:
        mask = F.dropout(torch.ones(x.shape), 0.4)
        assert (mask == 0).any()
        return x * mask

    torch.testing.assert_close(
        found.double(), reference_logits(model, document, dropout), atol=2e-4, rtol=2e-4
    )


def test_dropout_follows_the_seed_and_stops_outside_training():
    model = random_model(small_config(dropout=0.4))
    batch = pack([random_documents([11])])

    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return logits_of(model, batch)

    model.train()
    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    model.eval()
    assert torch.equal(run(1), run(2))
    without = random_model(small_config()).train()
    assert torch.equal(run(1), logits_of(without, batch))

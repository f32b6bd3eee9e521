"""Three training steps of a model of two layers: the Triton bodies and the plain form agree."""

import os

import minimind_kernels as K
import pytest
import torch
from minimind_kernels import backend
from small_models import FAMILIES, pack, random_documents, random_model, small_config

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton's interpreter"
)


def train(monkeypatch, family, kernels):
    monkeypatch.setattr(backend, "kernels_setting", lambda: kernels)
    model = random_model(small_config(family))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    documents = random_documents([7, 3, 5])
    batch = pack([documents])
    labels_M = batch.labels_BT.flatten()
    losses = []
    for _ in range(3):
        output = model(
            batch, lambda h, w: K.linear_cross_entropy(h, w, labels_M, uniform_grad=True)
        )
        loss = output.per_token.sum() / batch.num_targets
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_agree(monkeypatch, family):
    expected = train(monkeypatch, family, "torch")
    assert expected[2] < expected[0]
    assert train(monkeypatch, family, "triton") == pytest.approx(expected, rel=1e-5)

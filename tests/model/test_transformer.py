"""The decoder against plain PyTorch in fp64, and that packing, checkpointing and seeds change
nothing they must not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_models import (
    EXPERTS,
    FAMILIES,
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

from minimind.config.model import load_model_config
from minimind.model import document_attention, transformer
from minimind.model.document_attention import PaddedPlan
from minimind.model.transformer import Transformer
from minimind.types import IGNORE_INDEX

VARIANTS: list[dict[str, Any]] = [
    {},
    {"num_key_value_heads": 4},
    {"num_key_value_heads": 1},
    {"rope_scaling": "yarn", "rope_theta": 1e4},
    {"tie_word_embeddings": False},
    {"norm_cast_before_weight": False, "rms_norm_eps": 1e-3},
    *EXPERTS,
]


def assert_same_gradients(left: dict[str, Tensor], right: dict[str, Tensor], rtol: float) -> None:
    """Relative to each gradient's size: single entries may be near 0."""
    assert left.keys() == right.keys()
    for name, gradient in left.items():
        assert gradient.norm() > 0, name
        assert (gradient - right[name]).norm() <= rtol * gradient.norm(), name


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_formulas(family: str, changes: dict[str, Any]):
    model = random_model(small_config(family, **changes))
    documents = random_documents([9, 1, 14])
    batch = pack([documents[:2], documents[2:]])
    logits_MV = logits_of(model, batch)
    starts = batch.cu_seqlens.tolist()
    expected = [reference_logits(model, d) for d in (*documents[:2], [0] * 4, documents[2])]
    assert [len(e) for e in expected] == torch.tensor(starts).diff().tolist()
    torch.testing.assert_close(logits_MV.double(), torch.cat(expected), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("flash_from", [512, 10])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_documents_train_as_each_alone(
    monkeypatch: pytest.MonkeyPatch, family: str, flash_from: int
):
    """Loss and every gradient: packed in two rows, one document a row padded, one a batch."""
    monkeypatch.setattr(document_attention, "FLASH_FROM", flash_from)
    model = random_model(small_config(family, tie_word_embeddings=False))
    documents = random_documents([12, 1, 5, 19, 2, 8, 7])
    packed = pack([documents[:4], documents[4:]], seq_len=40)
    padded = pack([[d] for d in documents], seq_len=20)
    assert packed.num_targets == padded.num_targets == sum(len(d) - 1 for d in documents)
    loss = loss_of(model, packed)
    expected = gradients(model, loss)
    alone = torch.stack([loss_of(model, pack([[d]])) for d in documents if len(d) > 1]).sum()
    for other in (loss_of(model, padded), alone):
        torch.testing.assert_close(other, loss, rtol=2e-6, atol=0)
        assert_same_gradients(expected, gradients(model, other), rtol=2e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_padded_documents_train_as_buckets(
    monkeypatch: pytest.MonkeyPatch, family: str, checkpointing: bool
):
    """What a GPU without flash attention computes is what the CPU does."""
    model = random_model(small_config(family))
    model.activation_checkpointing = checkpointing
    documents = random_documents([12, 1, 5, 19, 2, 8, 7])
    batch = pack([documents[:4], documents[4:]], seq_len=40)
    loss = loss_of(model, batch)
    expected = gradients(model, loss)
    monkeypatch.setattr(
        transformer,
        "plan_attention",
        lambda batch, *_: PaddedPlan.build(batch.bounds, torch.device("cpu")),
    )
    padded = loss_of(model, batch)
    torch.testing.assert_close(padded, loss, rtol=2e-6, atol=0)
    assert_same_gradients(expected, gradients(model, padded), rtol=2e-5)


@pytest.mark.parametrize("flash_from", [512, 5])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_token_reaches_itself_and_later_tokens_of_its_document_alone(
    monkeypatch: pytest.MonkeyPatch, family: str, flash_from: int
):
    monkeypatch.setattr(document_attention, "FLASH_FROM", flash_from)
    model = random_model(small_config(family))
    lengths = [6, 1, 4, 7]
    documents = random_documents(lengths)
    batch = pack([documents[:2], documents[2:]], seq_len=12)
    before = logits_of(model, batch)
    starts = batch.cu_seqlens.tolist()
    flat = batch.ids_BT.view(-1)
    for token in range(len(flat)):
        kept = flat[token].item()
        flat[token] = (kept + 13) % 97
        changed = (logits_of(model, batch) != before).any(1).nonzero().flatten().tolist()
        flat[token] = kept
        end = next(s for s in starts if s > token)
        assert changed == list(range(token, end)), f"token {token}"


def test_a_document_is_the_same_anywhere_in_a_row():
    model = random_model(small_config())
    document, other = random_documents([9, 11])
    for row in ([document, other], [other, document]):
        start = 0 if row[0] is document else len(other)
        found = logits_of(model, pack([row], seq_len=30))[start : start + 9]
        torch.testing.assert_close(found, logits_of(model, pack([[document]])), atol=1e-5, rtol=0)


def test_the_first_loss_of_a_fresh_model_is_that_of_guessing():
    """ln 6400 = 8.764, and a little more for the logits' spread: hidden values of size 1 times
    768 weights of 0.02 have variance 0.31, half of which adds to the loss."""
    model = Transformer(load_model_config("minimind3"))
    model.init_weights(42)
    documents = random_documents([160, 96], vocab=6400)
    batch = pack([documents])
    with torch.no_grad():
        loss = loss_of(model, batch).item() / batch.num_targets
    assert math.log(6400) < loss < 9.05
    assert loss == pytest.approx(8.764 + 768 * 0.02**2 / 2, abs=0.12)


def test_fresh_weights():
    config = small_config(vocab_size=2000, initializer_range=0.05, tie_word_embeddings=False)
    model, again, other = Transformer(config), Transformer(config), Transformer(config)
    model.init_weights(1)
    again.init_weights(1)
    other.init_weights(2)
    for (name, p), q, r in zip(
        model.named_parameters(), again.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(p, q), name
        if "norm" in name:
            assert (p == 1).all(), name
            continue
        assert not torch.equal(p, r), name
        assert p.std().item() == pytest.approx(0.05, rel=0.1), name
        assert p.mean().item() == pytest.approx(0, abs=0.005), name
    assert "lm_head.weight" in dict(model.named_parameters())
    assert "lm_head.weight" not in dict(Transformer(small_config()).named_parameters())


def test_named_weights_are_copied():
    source, target = random_model(small_config(), seed=1), random_model(small_config(), seed=2)
    weights = {name: p.detach() for name, p in source.named_parameters()}
    target.load_named(weights)
    for name, parameter in target.named_parameters():
        assert torch.equal(parameter, weights[name])
        assert parameter.data_ptr() != weights[name].data_ptr()


def test_a_tied_head_learns_through_both_its_uses():
    """Tied, its gradient is the sum of the embedding's and the head's of the same untied model."""
    tied = random_model(small_config())
    untied = random_model(small_config(tie_word_embeddings=False))
    weights = {name: p.detach() for name, p in tied.named_parameters()}
    untied.load_named({**weights, "lm_head.weight": weights["embed_tokens.weight"]})
    batch = pack([random_documents([12, 5])])
    one = gradients(tied, loss_of(tied, batch))
    two = gradients(untied, loss_of(untied, batch))
    summed = two["embed_tokens.weight"] + two["lm_head.weight"]
    torch.testing.assert_close(one["embed_tokens.weight"], summed, atol=1e-5, rtol=1e-5)


def test_the_stages_function_sees_hidden_states_and_the_head():
    model = random_model(small_config(tie_word_embeddings=False))
    batch = pack([random_documents([5, 4])], seq_len=12)
    seen: list[Tensor] = []

    def head(hidden_MD: Tensor, weight_VD: Tensor) -> Tensor:
        seen.extend((hidden_MD, weight_VD))
        return hidden_MD.sum(1)

    output = model(batch, head)
    hidden_MD, weight_VD = seen
    assert (hidden_MD.shape, output.per_token.shape) == ((12, 32), (12,))
    assert weight_VD is model.lm_head.weight
    assert output.aux_loss is None


def test_bf16_weights_give_nearly_the_same_loss():
    model = random_model(small_config())
    batch = pack([random_documents([8, 4])])
    exact = loss_of(model, batch)
    model.bfloat16()
    logits = logits_of(model, batch)
    assert logits.dtype == torch.bfloat16
    loss = F.cross_entropy(logits.float(), batch.labels_BT.flatten(), reduction="sum")
    assert loss.item() == pytest.approx(exact.item(), rel=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("family", "changes"), [("llama", {}), ("qwen3", {}), ("qwen3", EXPERTS[0])], ids=str
)
def test_without_a_gradient_the_bits_are_the_same(
    family: str, changes: dict[str, Any], dtype: torch.dtype
):
    """Else a reference or a validation would be of another model than the one that trains."""
    model = random_model(small_config(family, **changes)).to(dtype)
    batch = pack([random_documents([7, 12, 3]), random_documents([15, 5], seed=1)], seq_len=25)
    trained = logits_of(model, batch)
    assert trained.requires_grad
    with torch.no_grad():
        assert torch.equal(logits_of(model, batch), trained)


def test_the_packing_of_these_tests():
    batch = pack([[[5, 6, 7], [8]], [[9, 9]]], seq_len=5)
    ignore = IGNORE_INDEX
    assert batch.ids_BT.tolist() == [[5, 6, 7, 8, 0], [9, 9, 0, 0, 0]]
    assert batch.labels_BT.tolist() == [[6, 7, *[ignore] * 3], [9, *[ignore] * 4]]
    assert batch.positions_BT.tolist() == [[0, 1, 2, 0, 0], [0, 1, 0, 1, 2]]
    assert batch.cu_seqlens.tolist() == [0, 3, 4, 5, 7, 10]
    assert (batch.max_len, batch.num_targets) == (3, 3)

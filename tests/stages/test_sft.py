"""Supervised fine-tuning: the targets of conversations, packed or alone."""

from __future__ import annotations

import pytest
import torch
from chats import CHATS
from small_models import gradients, random_model, reference_logits, small_config

from minimind.config.recipe import replace_fields
from minimind.data.chat_format import chat_samples
from minimind.data.collate import collate
from minimind.data.packing import build_row
from minimind.errors import ConfigError
from minimind.model.transformer import Transformer
from minimind.samples.text import load_sample_tokenizer
from minimind.stages.sft import SFT, SFTRecipe
from minimind.types import Row, Sample

NAMES = ("system", "several turns", "reasoning", "no content")


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    rows = [Row(data={"conversations": CHATS[name]}, path="c", line=1) for name in NAMES]
    samples = chat_samples(rows, load_sample_tokenizer())
    return [sample for sample in samples if isinstance(sample, Sample)]


@pytest.fixture(scope="module")
def model() -> Transformer:
    return random_model(small_config(vocab_size=load_sample_tokenizer().vocab_size))


def rows_of(samples: list[Sample], seq_len: int):
    return build_row([(s.ids, s.is_target) for s in samples], seq_len, pad_id=0)


def test_packed_conversations_have_the_loss_and_gradients_of_padded_ones(
    model: Transformer, samples: list[Sample]
):
    stage = SFT(SFTRecipe())
    longest = max(len(sample.ids) for sample in samples)
    packed = collate([rows_of(samples[:3], 3 * longest), rows_of(samples[3:], 3 * longest)])
    padded = [collate([rows_of([sample], longest + 5)]) for sample in samples]
    whole = stage.loss(model, packed)
    alone = [stage.loss(model, batch) for batch in padded]
    assert packed.count == sum(batch.count for batch in padded)
    assert packed.count == sum(int(sample.is_target.sum()) for sample in samples)
    total = torch.stack([loss.total for loss in alone]).sum()
    assert whole.total.item() == pytest.approx(total.item(), rel=1e-5)
    expected = gradients(model, total)
    for name, gradient in gradients(model, whole.total).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)


def test_the_loss_is_that_of_the_assistants_tokens(model: Transformer, samples: list[Sample]):
    for sample in samples:
        log_probs_LV = reference_logits(model, sample.ids.tolist()).log_softmax(-1)
        expected = -sum(
            log_probs_LV[place - 1, int(sample.ids[place])].item()
            for place in sample.is_target.nonzero()[0].tolist()
        )
        loss = SFT(SFTRecipe()).loss(model, collate([rows_of([sample], len(sample.ids))]))
        assert loss.total.item() == pytest.approx(expected, rel=1e-5)


def test_augmentation_is_an_option_of_the_data():
    assert SFTRecipe().format_options == {}
    options = SFTRecipe(empty_think_ratio=0.2, seed=3).format_options
    assert options == {"system_prompt_ratio": 0.0, "empty_think_ratio": 0.2, "seed": 3}
    for name in ("system_prompt_ratio", "empty_think_ratio"):
        recipe = replace_fields(SFTRecipe(learning_rate=1.0), {name: 1.5}, "test")
        with pytest.raises(ConfigError, match=f"{name} is 1.5; it must be from 0 to 1"):
            recipe.check()

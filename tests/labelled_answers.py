"""Builds labelled answers, a reference model and a policy that has moved away from it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from fake_engine import FakeEngine
from small_models import random_model, small_config
from torch import Tensor, nn

from minimind.data.loader import PackedLoader, WeightedSource
from minimind.data.token_cache import TokenCache, build_token_cache
from minimind.data.unpaired_format import UNPAIRED
from minimind.engine.deepspeed_engine import DeepSpeedEngine
from minimind.engine.stage import BuildContext
from minimind.model.state_dict import save_hf_folder
from minimind.model.transformer import Transformer
from minimind.runtime.ranks import Ranks
from minimind.samples.text import load_sample_tokenizer
from minimind.stages.kto import KTO, KTOBatch, KTORecipe

TOKENIZER = load_sample_tokenizer()
CONFIG = small_config(vocab_size=1700)
SEQ_LEN = 256
WEIGHTED = {"desirable_weight": 0.7, "undesirable_weight": 1.3}


class PolicyEngine(FakeEngine):
    """Is a fake engine that a stage can call."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.module(*arguments, **options)


class OtherRank(PolicyEngine):
    """Is one of two ranks, of which the other has found `others`."""

    others: Tensor

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        return values.add_(self.others)


def engine_of(policy: nn.Module, world_size: int = 1) -> DeepSpeedEngine:
    return PolicyEngine(Ranks(0, 0, world_size), module=policy).typed


def build_answers(
    path: Path, count: int, name: str = "", good: Iterable[int] = (1, 2)
) -> TokenCache:
    """Tokenises `count` answers; those whose number mod 3 is in `good` are labelled good."""
    rows = []
    for number in range(count):
        texts = (f"{name} {number} + 1 = ?", f"It is {number + 1}. " * (1 + number % 4))
        turns = zip(("user", "assistant"), texts, strict=True)
        conversation = [{"role": role, "content": text} for role, text in turns]
        rows.append({"conversations": conversation, "label": number % 3 in good})
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return build_token_cache(path, TOKENIZER, UNPAIRED)


def save(model: Transformer, folder: Path) -> Path:
    """Writes a model folder with the sample tokenizer."""
    save_hf_folder(folder, model.config, dict(model.named_parameters()), torch.float32)
    TOKENIZER.save(folder)
    return folder


def load(cache: TokenCache, micro_batch: int = 1, **options: int) -> PackedLoader:
    sizes = {"seq_len": SEQ_LEN, "rows_per_step": micro_batch, "micro_batch": micro_batch}
    return PackedLoader([WeightedSource(cache)], **{**sizes, "pad_id": 0, **options})


def build(folder: Path, loader: PackedLoader, **options: Any) -> KTO:
    stage = KTO(KTORecipe(**options))
    stage.build_models(BuildContext(config=CONFIG, weights_folder=folder, loader=loader))
    return stage


def prepared(
    stage: KTO, policy: Transformer, batches: list[Any], world_size: int = 1
) -> list[KTOBatch]:
    """Gives the batches from which a step on these micro-batches is computed."""
    engine = engine_of(policy, world_size)
    (found,) = stage.prepare(engine, batches, 0)
    assert cast(PolicyEngine, engine).training
    return found


def nearby(model: Transformer, amount: float) -> Transformer:
    """Gives a policy slightly different from its reference, for which z is above 0 because it
    prefers the mismatched answers."""
    moved = random_model(CONFIG, seed=4)
    other = dict(random_model(CONFIG, seed=3).named_parameters())
    with torch.no_grad():
        for (name, p), q in zip(moved.named_parameters(), model.parameters(), strict=True):
            p.copy_(q + amount * (other[name] - q))
    return moved

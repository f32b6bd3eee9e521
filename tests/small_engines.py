"""Makes batch engines over small models, and checks their tokens."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch
from small_models import logits_of, pack
from torch import Tensor

from minimind.data.tokenizer import Tokenizer
from minimind.inference.batch_engine import BatchEngine
from minimind.inference.generation import Generation
from minimind.inference.request import Completion, Delta, GenerationRequest
from minimind.inference.sampling import SamplingParams
from minimind.inference.text_stream import TextStream
from minimind.model.transformer import Transformer
from minimind.samples.text import load_sample_tokenizer


@functools.cache
def tokenizer() -> Tokenizer:
    return load_sample_tokenizer()


def request(
    ids: Sequence[int], new: int = 8, stop_ids: tuple[int, ...] = (), **settings: Any
) -> GenerationRequest:
    params = SamplingParams(max_new_tokens=new, **settings)
    return GenerationRequest(prompt_ids=ids, params=params, stop_ids=stop_ids)


def generation_in(
    slot: int, params: SamplingParams, prompt_ids: Sequence[int] = (3,)
) -> Generation:
    """Gives a sequence in the state in which the slot table leaves it."""
    asked = GenerationRequest(prompt_ids=prompt_ids, params=params)
    generation = Generation(slot, asked, TextStream(tokenizer(), params.stop))
    generation.slot = slot
    return generation


def engine_of(
    model: Transformer, max_batch: int = 4, slot: int = 100, **options: Any
) -> BatchEngine:
    return BatchEngine(
        model, tokenizer(), max_batch=max_batch, max_tokens=max_batch * slot, **options
    )


def whole(model: Transformer, ids: Sequence[int]) -> Tensor:
    with torch.no_grad():
        return logits_of(model, pack([[ids]]))


def check_greedy(model: Transformer, prompt: Sequence[int], completion: Completion) -> None:
    """Checks that each token is the likeliest after all before it, by a forward over the whole
    sequence, or as likely up to rounding."""
    ids = [*prompt, *completion.ids]
    logits_TV = whole(model, ids[:-1])[len(prompt) - 1 :]
    chosen_T = logits_TV.gather(1, torch.tensor(completion.ids)[:, None])[:, 0]
    best_T, best_ids_T = logits_TV.max(-1)
    assert (best_T - chosen_T).max() < 1e-4
    assert completion.ids == tuple(best_ids_T.tolist())


def fail_a_step(engine: BatchEngine, model: Transformer) -> dict[int, str | None]:
    """Takes a step in which the forward fails; gives how each request ended in it."""
    with mock.patch.object(model, "decode", side_effect=RuntimeError("out of memory")):
        return {delta.request_id: delta.finish_reason for delta in engine.step()}


def run_to_the_end(engine: BatchEngine) -> list[Delta]:
    deltas = []
    while engine.has_work:
        deltas += engine.step()
    return deltas

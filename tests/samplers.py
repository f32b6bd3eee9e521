"""Draws tokens for tests, on the host and on the device, and filters as `transformers` does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from small_engines import generation_in
from torch import Tensor

from minimind.inference import filters
from minimind.inference.batch_settings import BatchSettings
from minimind.inference.device_sampler import DeviceSampler
from minimind.inference.generation import Generation
from minimind.inference.pending_tokens import PendingTokens
from minimind.inference.sampler import Sampler
from minimind.inference.sampling import SamplingParams

CPU = torch.device("cpu")
V = 60


def random_logits(seed: int, scale: float = 3.0) -> Tensor:
    return torch.randn(V, generator=torch.Generator().manual_seed(seed)) * scale


def params(**changes: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 1.0, **changes})


class OnDevice(DeviceSampler):
    """The sampler of a GPU, here."""

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device) -> None:
        super().__init__(num_slots, vocab_size, device, max_new_tokens=4000)


SAMPLERS: tuple[type[Sampler], ...] = (Sampler, OnDevice)
both_samplers = pytest.mark.parametrize("kind", SAMPLERS, ids=["host", "device"])


class Opened:
    """A sampler with a sequence in each slot."""

    def __init__(
        self, sampler: Sampler, settings: Sequence[SamplingParams], prompt: Sequence[int] = (3,)
    ) -> None:
        self.sampler, self._prompt = sampler, prompt
        self.batch: list[Generation] = []
        for slot, one in enumerate(settings):
            self.batch.append(generation_in(slot, one, prompt))
            sampler.open(self.batch[slot])

    def reopen(self, slot: int) -> None:
        """Begins the sequence of a slot again."""
        self.batch[slot] = generation_in(slot, self.batch[slot].request.params, self._prompt)
        self.sampler.open(self.batch[slot])

    def sample(self, logits_BV: Tensor, slots: Sequence[int]) -> list[Any]:
        return read(self.sampler.sample(logits_BV, [self.batch[slot] for slot in slots]))

    def choose(self, logits_BV: Tensor, slots: Sequence[int] = (0,)) -> list[int]:
        return [token for _, token, _ in self.sample(logits_BV, slots)]


def read(pending: PendingTokens) -> list[Any]:
    """By slots, since each sampler has sequences of its own."""
    return [(one.slot, token, logprob) for one, token, logprob in pending.read()]


def sampler_of(
    *settings: SamplingParams,
    prompt: Sequence[int] = (3,),
    kind: type[Sampler] = Sampler,
    vocab: int = V,
) -> Opened:
    return Opened(kind(len(settings), vocab, CPU), settings, prompt)


def filtered_probs(logits_BV: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    vocab = logits_BV.shape[1]
    settings = BatchSettings.build(params, range(len(params)), vocab, CPU)
    return filters.filtered_probs(logits_BV, settings.drawn, settings.used)


def transformers_logits(logits_V: Tensor, seen: list[int], p: SamplingParams) -> Tensor:
    """The processors of `transformers`, in the order its generate() applies them."""
    from transformers.generation import logits_process as hf

    scores, ids = logits_V[None].clone(), torch.tensor([seen])
    if p.repetition_penalty != 1.0:
        scores = hf.RepetitionPenaltyLogitsProcessor(p.repetition_penalty)(ids, scores)
    if p.temperature not in (0.0, 1.0):
        scores = hf.TemperatureLogitsWarper(p.temperature)(ids, scores)
    if p.top_k:
        scores = hf.TopKLogitsWarper(p.top_k)(ids, scores)
    if p.top_p < 1.0:
        scores = hf.TopPLogitsWarper(p.top_p)(ids, scores)
    if p.min_p:
        scores = hf.MinPLogitsWarper(p.min_p)(ids, scores)
    return scores[0]

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
        self, settings: Sequence[SamplingParams], prompt: Sequence[int], sampler: Sampler
    ) -> None:
        self._sampler, self._prompt = sampler, prompt
        self._generations: dict[int, Generation] = {}
        for slot, one in enumerate(settings):
            self.open(slot, one)

    def open(self, slot: int, p: SamplingParams) -> None:
        self._generations[slot] = generation_in(slot, p, self._prompt)
        self._sampler.open(self._generations[slot])

    def choose(self, logits_BV: Tensor, slots: Sequence[int]) -> list[int]:
        batch = [self._generations[slot] for slot in slots]
        return [token for _, token, _ in self._sampler.sample(logits_BV, batch).read()]


def sampler_of(
    *settings: SamplingParams,
    prompt: Sequence[int] = (3,),
    kind: type[Sampler] = Sampler,
    vocab: int = V,
) -> Opened:
    return Opened(settings, prompt, kind(len(settings), vocab, CPU))


def choose(sampler: Opened, logits_BV: Tensor, slots: Sequence[int]) -> list[int]:
    return sampler.choose(logits_BV, slots)


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

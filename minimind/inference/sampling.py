"""From logits to the next token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minimind.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to choose tokens. The filters apply in the order repetition penalty, temperature, top-k,
    top-p, min-p, as in `transformers`."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    """0 is greedy: the most likely token, whatever the filters say."""
    top_k: int = 0
    """Keep the k most likely (0: all)."""
    top_p: float = 1.0
    """Keep the smallest set of most likely tokens with at least this probability (Holtzman et al.
    2020)."""
    min_p: float = 0.0
    """Keep tokens of at least this share of the most likely one's probability (Nguyen et al.
    2024)."""
    repetition_penalty: float = 1.0
    """Divide positive and multiply negative logits of tokens seen before (Keskar et al. 2019)."""
    seed: int | None = None
    stop: tuple[str, ...] = ()
    """Strings that end the text and are not part of it."""

    def __post_init__(self) -> None:
        allowed = {
            "max_new_tokens": (self.max_new_tokens >= 0, "at least 0"),
            "temperature": (0 <= self.temperature < math.inf, "at least 0"),
            "top_k": (self.top_k >= 0, "at least 0"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_p": (0 <= self.min_p <= 1, "from 0 to 1"),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "above 0"),
            "stop": (all(self.stop), "strings that are not empty"),
        }
        for name, (holds, rule) in allowed.items():
            if not holds:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be {rule}")


class Sampler:
    """Chooses the tokens of one sequence, with its own random numbers."""

    def __init__(self, params: SamplingParams, seen: Sequence[int], device: torch.device) -> None:
        """`seen`: the prompt, which the repetition penalty counts too."""
        self.params = params
        self._seen_V: Tensor | None = None
        self._prompt = seen
        self._generator = torch.Generator(device=device)
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed)

    def __call__(self, logits_V: Tensor) -> Tensor:
        """fp32 logits [V] to a token id, int64 [1] on the same device."""
        params = self.params
        if params.repetition_penalty != 1.0:
            logits_V = self._penalize(logits_V)
        if params.temperature == 0:
            token = logits_V.argmax(keepdim=True)
        else:
            probs_V = filtered_probs(logits_V, params)
            token = torch.multinomial(probs_V, 1, generator=self._generator)
        if self._seen_V is not None:
            self._seen_V[token] = True
        return token

    def _penalize(self, logits_V: Tensor) -> Tensor:
        if self._seen_V is None:
            self._seen_V = torch.zeros(len(logits_V), dtype=torch.bool, device=logits_V.device)
            self._seen_V[torch.tensor(self._prompt, dtype=torch.int64)] = True
        penalty = self.params.repetition_penalty
        penalized_V = torch.where(logits_V > 0, logits_V / penalty, logits_V * penalty)
        return torch.where(self._seen_V, penalized_V, logits_V)


def filtered_probs(logits_V: Tensor, params: SamplingParams) -> Tensor:
    """Probabilities after temperature, top-k, top-p and min-p; at least one token remains."""
    logits_V = logits_V / params.temperature
    if 0 < params.top_k < len(logits_V):
        least = logits_V.topk(params.top_k).values[-1]
        logits_V = logits_V.masked_fill(logits_V < least, float("-inf"))
    if params.top_p < 1.0:
        sorted_V, order_V = logits_V.sort(descending=True)
        probs_V = sorted_V.softmax(0)
        # A token stays if the likelier ones before it have not reached top_p yet.
        drop_V = probs_V.cumsum(0) - probs_V >= params.top_p
        logits_V = logits_V.scatter(0, order_V, sorted_V.masked_fill(drop_V, float("-inf")))
    probs_V = logits_V.softmax(0)
    if params.min_p > 0.0:
        probs_V = probs_V.masked_fill(probs_V < params.min_p * probs_V.max(), 0.0)
    return probs_V / probs_V.sum()

"""How a token is chosen, and the filters that say which ones may be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minimind.errors import ConfigError
from minimind.runtime.devices import send

_TINY = torch.finfo(torch.float32).tiny
"""In place of a temperature that fp32 rounds to 0."""
_BLOCK = 64
"""Tokens whose probabilities are summed before it is known whether one of them is drawn."""
_BELOW_1 = 1 - torch.finfo(torch.float64).eps
_LIKELY = 256
"""How many of the likeliest tokens almost always hold top_p: sorting them alone is quicker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to choose tokens. The penalties and filters apply in the order repetition, presence and
    frequency penalty, temperature, top-k, top-p, min-p, as in `transformers`."""

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
    """Divide positive and multiply negative logits of tokens of prompt and continuation (Keskar et
    al. 2019)."""
    presence_penalty: float = 0.0
    """Taken off the logits of tokens that the continuation holds (OpenAI's API)."""
    frequency_penalty: float = 0.0
    """Taken off them as often as it holds them (OpenAI's API)."""
    logprobs: int | None = None
    """Report each token's log-probability and those of this many likeliest ones."""
    tempered_logprobs: bool = False
    """Report those at the temperature (where it is above 0), which tokens are drawn from; else the
    model's own, whatever the temperature."""
    seed: int | None = None
    """None: a new one each time."""
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
            "presence_penalty": (math.isfinite(self.presence_penalty), "a finite number"),
            "frequency_penalty": (math.isfinite(self.frequency_penalty), "a finite number"),
            "logprobs": (self.logprobs is None or self.logprobs >= 0, "None or at least 0"),
            "stop": (all(self.stop), "strings that are not empty"),
        }
        for name, (holds, rule) in allowed.items():
            if not holds:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be {rule}")

    @property
    def penalizes(self) -> bool:
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )


def filtered_probs(logits_BV: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Probabilities [B, V] after each row's temperature, top-k, top-p and min-p; at least one
    token remains. fp32 logits [B, V], one of `params` (temperature above 0) for each row. Tokens
    exactly as likely as the least likely one kept stay with it."""
    device, vocab = logits_BV.device, logits_BV.shape[1]
    if any(p.temperature != 1.0 for p in params):
        temperature = send([max(p.temperature, _TINY) for p in params], device)
        # Relative to the maximum, so that no temperature overflows.
        logits_BV = (logits_BV - logits_BV.amax(-1, keepdim=True)) / temperature[:, None]
    top_k = [p.top_k if 0 < p.top_k < vocab else 0 for p in params]
    if any(top_k):
        largest_BK = logits_BV.topk(max(top_k)).values
        last = send([max(k - 1, 0) for k in top_k], device)[:, None]
        limited = send([k > 0 for k in top_k], device)[:, None]
        drop_BV = (logits_BV < largest_BK.gather(1, last)) & limited
        logits_BV = logits_BV.masked_fill(drop_BV, float("-inf"))
    probs_BV = logits_BV.softmax(-1)
    if any(p.top_p < 1.0 for p in params):
        probs_BV = _keep_top_p(probs_BV, send([p.top_p for p in params], device))
    if any(p.min_p > 0.0 for p in params):
        min_p = send([p.min_p for p in params], device)[:, None]
        least = min_p * probs_BV.amax(-1, keepdim=True)
        probs_BV = probs_BV.masked_fill(probs_BV < least, 0.0)
    return probs_BV.div_(probs_BV.sum(-1, keepdim=True))


def _keep_top_p(probs_BV: Tensor, top_p_B: Tensor) -> Tensor:
    vocab = probs_BV.shape[1]
    # Rows that keep all must not lose their last tokens to rounding.
    top_p_B1 = torch.where(top_p_B < 1.0, top_p_B, float("inf"))[:, None]
    sorted_BK = probs_BV.topk(min(_LIKELY, vocab)).values
    reached_B1 = sorted_BK.sum(-1, keepdim=True) >= top_p_B1
    if sorted_BK.shape[1] < vocab and not bool((reached_B1 | top_p_B1.isinf()).all()):
        sorted_BK = probs_BV.sort(descending=True).values
    # A token stays if the likelier ones before it have not reached top_p yet.
    kept_BK = sorted_BK.cumsum(-1) - sorted_BK < top_p_B1
    # None stays of a row that is not finite, or where fp32 rounds top_p to 0.
    last_B1 = (kept_BK.sum(-1, keepdim=True) - 1).clamp_min(0)
    least_B1 = sorted_BK.gather(1, last_B1)
    return probs_BV.masked_fill((probs_BV < least_B1) & top_p_B1.isfinite(), 0.0)


def draw(probs_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """The token of each row [B, int64] at which the summed probabilities pass `uniform_B` (fp64,
    from 0 to below 1) of their total."""
    if short := -probs_BV.shape[1] % _BLOCK:
        probs_BV = nn.functional.pad(probs_BV, (0, short))
    blocks_BNK = probs_BV.unflatten(1, (-1, _BLOCK))
    # Sums in order over the whole vocabulary are slow in fp64: first which block, then which of it.
    sums_BN = blocks_BNK.sum(-1, dtype=torch.float64)
    block_B1, rest_B1 = _find(sums_BN, uniform_B[:, None] * sums_BN.sum(-1, keepdim=True))
    block_BK = blocks_BNK[torch.arange(len(block_B1), device=block_B1.device), block_B1[:, 0]]
    place_B1, _ = _find(block_BK.double(), rest_B1)
    return (block_B1 * _BLOCK + place_B1).squeeze(1)


def _find(parts_BN: Tensor, target_B1: Tensor) -> tuple[Tensor, Tensor]:
    """Gives where the summed parts pass the target, or would but for rounding: always at a part
    above 0, where there is one. Besides, how far into that part it is."""
    summed_BN = parts_BN.cumsum(-1)
    target_B1 = torch.minimum(target_B1, summed_BN[:, -1:] * _BELOW_1)
    at_B1 = torch.searchsorted(summed_BN, target_B1, right=True).clamp_max(parts_BN.shape[1] - 1)
    before_B1 = summed_BN.gather(1, at_B1) - parts_BN.gather(1, at_B1)
    return at_B1, (target_B1 - before_B1).clamp_min(0)

"""Log-probabilities to report beside chosen tokens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """Natural logarithm of a token's probability under the model itself, before penalties,
    temperature and filters (with SamplingParams.tempered_logprobs after the temperature); those of
    the likeliest tokens beside it, likeliest first."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    """(id, logprob)."""

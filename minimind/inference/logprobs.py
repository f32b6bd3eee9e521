"""Computes the log-probabilities to report with chosen tokens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """Holds the natural logarithm of a token's probability under the model itself, before
    penalties, temperature and filters (with SamplingParams.tempered_logprobs after the
    temperature), and those of the likeliest tokens, likeliest first."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    """Pairs of (id, logprob)."""

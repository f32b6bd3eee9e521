"""Defines the log-probabilities that are reported with a token."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """Holds the log-probability of a token and of the likeliest tokens at its position, likeliest
    first. They are the model's own, before penalties, temperature and filters; with
    SamplingParams.tempered_logprobs they are taken after the temperature."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    """(token id, log-probability) of each."""

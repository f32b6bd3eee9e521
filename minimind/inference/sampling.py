"""Defines how a token is chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass

from minimind.errors import ConfigError
from minimind.inference.grammar import Grammar


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Says how to choose tokens. Settings that change the logits apply in the order of
    `transformers`: repetition, presence and frequency penalty, logit_bias, grammar, temperature,
    top-k, top-p, min-p."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    """0 is greedy: always the likeliest token, whatever the filters."""
    top_k: int = 0
    """Keep only the k likeliest tokens (0: all)."""
    top_p: float = 1.0
    """Keep only the smallest set of likeliest tokens whose probabilities sum to at least this
    (Holtzman et al. 2020)."""
    min_p: float = 0.0
    """Keep only tokens with at least this share of the likeliest token's probability (Nguyen et al.
    2024)."""
    repetition_penalty: float = 1.0
    """For each token in the prompt or the continuation, divide its logit by this if positive,
    multiply if negative (Keskar et al. 2019)."""
    presence_penalty: float = 0.0
    """Subtract this from the logit of each token that the continuation contains (OpenAI's API)."""
    frequency_penalty: float = 0.0
    """Subtract this from a token's logit once for each time the continuation contains it (OpenAI's
    API)."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, number to add to its logit) pairs (OpenAI's API): −100 practically bans a token,
    100 practically forces it."""
    grammar: Grammar | None = None
    """The grammar that limits the tokens; where it ends, the text ends."""
    logprobs: int | None = None
    """Report the log-probability of each token, and those of this many likeliest tokens; None
    reports none."""
    tempered_logprobs: bool = False
    """Report log-probabilities at the sampling temperature, if it is above 0; otherwise those of
    the model itself, whatever the temperature."""
    seed: int | None = None
    """The seed of the random numbers; None takes a new one each time."""
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
            "logit_bias": (
                all(math.isfinite(bias) for _, bias in self.logit_bias),
                "finite numbers by token",
            ),
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

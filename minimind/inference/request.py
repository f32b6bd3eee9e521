"""Defines the input and output of the batch engine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from minimind.config.model import ModelConfig
from minimind.errors import ConfigError
from minimind.inference.logprobs import TokenLogprob
from minimind.inference.sampling import SamplingParams

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """Holds a prompt and how to continue it."""

    prompt_ids: Sequence[int]
    params: SamplingParams
    stop_ids: tuple[int, ...] = ()
    """Tokens that end the generation and are not part of the text: usually the end of a turn or of
    the text."""
    gives_stop: bool = False
    """True where the stop token is given out too, in `ids` but never as text."""
    skips_special: bool = True
    """True where generated special tokens are left out of the text."""
    adapter: str | None = None
    """The name of one of the engine's adapters; None uses the model alone."""

    def check(self, config: ModelConfig, capacity: int, adapters: Sequence[str]) -> None:
        """Raises ConfigError for a request that an engine with this model, slots of `capacity`
        tokens and these adapters cannot serve."""
        prompt, new = self.prompt_ids, self.params.max_new_tokens
        if self.adapter is not None and self.adapter not in adapters:
            names = ", ".join(adapters) or "none"
            raise ConfigError(f"adapter {self.adapter!r} is not loaded; loaded: {names}")
        if not prompt:
            raise ConfigError("the prompt is empty: give at least the token that starts a document")
        biased = [token for token, _ in self.params.logit_bias]
        for what, ids in (("the prompt holds", prompt), ("logit_bias names", biased or (0,))):
            for token in (min(ids), max(ids)):
                if not 0 <= token < config.vocab_size:
                    raise ConfigError(
                        f"{what} the token {token}; the model's are 0 to {config.vocab_size - 1}"
                    )
        if len(prompt) + new > config.max_position_embeddings:
            raise ConfigError(
                f"a prompt of {len(prompt)} tokens and {new} new ones do not fit the model's "
                f"context of {config.max_position_embeddings}"
            )
        if len(prompt) + new > capacity:
            raise ConfigError(
                f"a prompt of {len(prompt)} tokens and {new} new ones do not fit a cache slot of "
                f"{capacity}: raise the engine's max_tokens or lower its max_batch"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """Holds one request's output of one step."""

    request_id: int
    text: str = ""
    """New text, in whole characters. Text that may become a stop string is held back until that is
    decided."""
    ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    """The log-probability of each token in `ids`, where the request asks for them."""
    finish_reason: FinishReason | None = None
    prompt_tokens: int
    cached_tokens: int
    """The number of the prompt's tokens that were found in the cache."""
    completion_tokens: int
    """The number of tokens generated so far, the stop token included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """Holds the whole output of a request."""

    request_id: int
    text: str
    ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int

    @classmethod
    def join(cls, deltas: Iterable[Delta]) -> Completion:
        """Joins all deltas of one request, given in order."""
        deltas = list(deltas)
        last = deltas[-1]
        assert last.finish_reason is not None
        return cls(
            request_id=last.request_id,
            text="".join(delta.text for delta in deltas),
            ids=tuple(token for delta in deltas for token in delta.ids),
            logprobs=tuple(entry for delta in deltas for entry in delta.logprobs),
            finish_reason=last.finish_reason,
            prompt_tokens=last.prompt_tokens,
            cached_tokens=last.cached_tokens,
            completion_tokens=last.completion_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """Counts the requests that are running and waiting now, and the tokens since the engine was
    made."""

    running: int
    waiting: int
    free_slots: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int

"""What goes into the batch engine and what comes out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from minimind.inference.logprobs import TokenLogprob
from minimind.inference.sampling import SamplingParams

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """A prompt and how to continue it."""

    prompt_ids: Sequence[int]
    params: SamplingParams
    stop_ids: tuple[int, ...] = ()
    """Tokens that end it and are not given out: at least the end of a turn or text, most often."""
    gives_stop: bool = False
    """The token of `stop_ids` that ended it is given out too, among `ids` and never as text."""
    adapter: str | None = None
    """One of the engine's, by name; None: the model alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What one step gave one request."""

    request_id: int
    text: str = ""
    """Whole characters; what may become a stop string is held back until it is known."""
    ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each of `ids`, where the request asks for them."""
    finish_reason: FinishReason | None = None
    prompt_tokens: int
    cached_tokens: int
    """Of the prompt: found in the cache."""
    completion_tokens: int
    """Made so far, the token that ended it included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """All that a request gave."""

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
        """From all deltas of one request, in order."""
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

"""Holds a sequence that is being generated, from a request's prompt to its last token."""

from __future__ import annotations

import random

from minimind.inference.logprobs import TokenLogprob
from minimind.inference.request import Delta, FinishReason, GenerationRequest
from minimind.inference.text_stream import TextStream

NO_SLOT = -1


class Generation:
    """Holds a request and its progress. The scheduler decides how many of its tokens a step
    computes, and the slot table where its keys and values lie; its random numbers and its text are
    kept here."""

    def __init__(self, id: int, request: GenerationRequest, text: TextStream) -> None:
        self.id, self.request, self.text = id, request, text
        self.ids = list(request.prompt_ids)
        """The prompt's tokens, then the generated ones."""
        self.random = random.Random(request.params.seed)
        """The generator of its random numbers, one per token; they do not depend on the batch or
        the device."""
        self.slot = NO_SLOT
        """The cache slot that it has, or had last."""
        self.num_computed = 0
        """The number of its tokens that have keys and values in the slot."""
        self.num_scheduled = 0
        """The number of further tokens that the next step computes."""
        self.cached_tokens = 0
        """The number of prompt tokens that were in the cache when it got its slot."""
        self.finish_reason: FinishReason | None = None

    @property
    def is_running(self) -> bool:
        """Tells whether the sequence holds a cache slot and has not ended."""
        return self.slot != NO_SLOT and self.finish_reason is None

    @property
    def num_made(self) -> int:
        return len(self.ids) - len(self.request.prompt_ids)

    @property
    def ends_next(self) -> bool:
        """Tells whether the sequence has ended, or must end with its next token."""
        has_ended = self.finish_reason is not None
        return has_ended or self.num_made + 1 >= self.request.params.max_new_tokens

    def add(self, token: int, logprob: TokenLogprob | None, *, is_complete: bool) -> Delta:
        """Appends `token` and gives the output. `is_complete`: the grammar allows no further
        token."""
        self.ids.append(token)
        text, is_given = "", True
        if token in self.request.stop_ids:
            self.finish_reason, is_given = "stop", self.request.gives_stop
        else:
            text = self.text.push(token)
            if self.text.stopped or is_complete:
                self.finish_reason = "stop"
            elif self.num_made == self.request.params.max_new_tokens:
                self.finish_reason = "length"
        if self.finish_reason is not None:
            text += self.text.flush()
        if not is_given:
            return self._delta(text)
        return self._delta(text, (token,), () if logprob is None else (logprob,))

    def finish(self, reason: FinishReason) -> Delta:
        """Ends the sequence without another token, and gives its last output."""
        self.finish_reason = reason
        return self._delta(self.text.flush())

    def _delta(
        self, text: str, ids: tuple[int, ...] = (), logprobs: tuple[TokenLogprob, ...] = ()
    ) -> Delta:
        return Delta(
            request_id=self.id,
            text=text,
            ids=ids,
            logprobs=logprobs,
            finish_reason=self.finish_reason,
            prompt_tokens=len(self.request.prompt_ids),
            cached_tokens=self.cached_tokens,
            completion_tokens=self.num_made,
        )

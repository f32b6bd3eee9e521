"""Defines the batch engine: it takes requests, and each step gives the new output of each."""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence

import torch

from minimind.data.tokenizer import Tokenizer
from minimind.errors import ConfigError, MiniMindError
from minimind.inference.decode_graphs import Choose
from minimind.inference.generation import Generation
from minimind.inference.grammar import GrammarCompiler
from minimind.inference.grammar_masks import GrammarFailure
from minimind.inference.logprobs import TokenLogprob
from minimind.inference.model_runner import ModelRunner
from minimind.inference.prompt_reader import PromptReader
from minimind.inference.request import (
    Completion,
    Delta,
    EngineStats,
    FinishReason,
    GenerationRequest,
)
from minimind.inference.sampler import NO_TOKEN
from minimind.inference.scheduler import Scheduler
from minimind.inference.slots import SlotTable
from minimind.inference.text_stream import TextStream
from minimind.lora.loaded import LoadedAdapters
from minimind.model.transformer import Transformer
from minimind.runtime.progress import mark_progress

logger = logging.getLogger(__name__)
_Launched = tuple[list[Generation], Choose]

MAX_PREFILL = 512
"""The most prompt tokens computed in a step: enough to keep the matrix products busy, few enough
that running sequences wait only a moment."""

_USUAL_TOKENS = 1 << 20
"""The most tokens that the cache holds by default. A config.json may claim any context length, and
the cache would take memory for all of it, whether or not the model can use it."""


class BatchEngine:
    """Continues many prompts at once, over one cache of `max_batch` slots.

    One thread calls `step` in a loop while `has_work`; other threads may call `submit` and
    `cancel`. A request's tokens do not depend on the other requests in its batch.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        *,
        max_batch: int = 32,
        max_tokens: int | None = None,
        max_prefill: int = MAX_PREFILL,
        adapters: LoadedAdapters | None = None,
        fast_decode: bool = True,
        grammar_limit_s: float | None = None,
    ) -> None:
        """Makes an engine whose cache holds `max_tokens` tokens in all, shared equally by the
        slots; by default each slot holds a whole context, or its share of 1,048,576 tokens.

        Requests choose among `adapters`, which are loaded over `model`, by name. A batch uses one
        adapter, and adapters take turns. With `fast_decode`, steps of one token per sequence run as
        CUDA graphs on a GPU, and all steps in C++ on a CPU; preparing these takes time, which pays
        off in an engine that is kept. `grammar_limit_s` is GrammarCompiler's. Raises ConfigError.
        """
        capacity = model.config.max_position_embeddings
        share = (_USUAL_TOKENS if max_tokens is None else max_tokens) // max(max_batch, 1)
        capacity = min(capacity, share)
        sizes = {"max_batch": max_batch, "max_tokens // max_batch": capacity}
        for name, value in (sizes | {"max_prefill": max_prefill}).items():
            if value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        self._config, self._tokenizer, self._adapters = model.config, tokenizer, adapters
        self._runner = ModelRunner(
            model, max_batch, capacity, adapters=adapters, fast_decode=fast_decode
        )
        self.reader = PromptReader(model, adapters)
        self._slots = SlotTable(self._runner.cache)
        self._scheduler = Scheduler(self._slots, max_prefill)
        self.grammars = GrammarCompiler(tokenizer, model.config.vocab_size, limit_s=grammar_limit_s)
        """Compiles grammars for this engine's requests. Threads other than the one that calls
        `step` may use it."""
        self._ids = itertools.count(1)
        self._submitted: deque[Generation] = deque()
        self._to_cancel: deque[int] = deque()
        self._ahead: _Launched | None = None
        """A step that was launched before the previous step's tokens were read."""
        self._prompt_tokens = self._cached_tokens = self._completion_tokens = 0

    @property
    def max_sequence(self) -> int:
        """Gives the most tokens that a prompt and its continuation may have together."""
        return self._runner.cache.capacity

    @property
    def has_work(self) -> bool:
        return self._num_unfinished > 0

    @property
    def _num_unfinished(self) -> int:
        scheduler = self._scheduler
        return len(scheduler.running) + len(scheduler.waiting) + len(self._submitted)

    @property
    def stats(self) -> EngineStats:
        return EngineStats(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting) + len(self._submitted),
            free_slots=self._slots.num_free,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            completion_tokens=self._completion_tokens,
        )

    def refresh(self) -> None:
        """Reads the model's weights again after they changed. The engine must have no work."""
        assert not self.has_work, "requests would go on with other weights than they began with"
        self._slots.forget_all()
        self._runner.refresh()

    def submit(self, request: GenerationRequest) -> int:
        """Queues a request and gives its id; it waits while all slots are in use. Raises
        ConfigError for an empty prompt, an id beyond the vocabulary, and a request too long for the
        context or a slot."""
        self.check(request)
        text = TextStream(self._tokenizer, request.params.stop, request.skips_special)
        generation = Generation(next(self._ids), request, text)
        self._submitted.append(generation)
        return generation.id

    def cancel(self, request_id: int) -> None:
        """Ends a request and frees its slot in the next step; does nothing if it has ended
        already."""
        self._to_cancel.append(request_id)

    @torch.no_grad()
    def step(self) -> list[Delta]:
        """Runs one forward, and gives a Delta for each request that got a token or ended. A
        request's last Delta has a finish_reason. If the forward raises RuntimeError or a
        MiniMindError, its requests end with the finish_reason `error`, and nothing is raised."""
        mark_progress()
        # Cancellations are taken before submissions: a request cancelled here was submitted
        # earlier, so it is found below.
        to_cancel = [self._to_cancel.popleft() for _ in range(len(self._to_cancel))]
        while self._submitted:
            self._scheduler.waiting.append(self._submitted.popleft())
        deltas = self._cancelled(to_cancel)
        for generation in self._scheduler.admit():
            self._prompt_tokens += len(generation.ids)
            self._cached_tokens += generation.cached_tokens
            self._runner.sampler.open(generation)
            if generation.request.params.max_new_tokens == 0:
                deltas.append(self._finish(generation, "length"))
        batch, choose = self._ahead or ([], None)
        if not any(one.is_running for one in batch):
            batch, choose = self._scheduler.next_batch(), None
        if not batch:
            return deltas
        try:
            choose = choose or self._runner.launch(batch)
            pending = choose()
            self._ahead = self._launch_ahead(batch)
            found = pending.read()
        except (RuntimeError, MiniMindError):
            return deltas + self._fail_batch(batch)
        for generation in batch:
            if generation.is_running:
                generation.num_computed += generation.num_scheduled
        for generation, token, logprob in found:
            # A sequence that ended while this step was running has got one token too many.
            if generation.is_running:
                deltas.append(self._advance(generation, token, logprob))
        return deltas + self._choose_ahead()

    def _launch_ahead(self, batch: list[Generation]) -> _Launched | None:
        """Launches the step after `batch` on a GPU, so that it runs while the host reads and
        handles the tokens of `batch`. Gives None where other work must come first."""
        if not self._runner.can_go_on or self._submitted or self._to_cancel:
            return None
        if self._scheduler.goes_on(batch):
            return batch, self._runner.launch(batch, ahead=1)
        return None

    def _choose_ahead(self) -> list[Delta]:
        """Lets the step that was launched ahead choose its tokens, after the previous tokens were
        accepted and before a slot goes to another sequence."""
        following, choose = self._ahead or ([], None)
        if choose is None or not any(one.is_running for one in following):
            return []
        try:
            pending = choose()
        except (RuntimeError, MiniMindError):
            return self._fail_batch(following)
        self._ahead = following, lambda: pending
        return []

    def _fail_batch(self, batch: Sequence[Generation]) -> list[Delta]:
        """Ends all sequences of a batch whose forward failed, mostly for lack of memory or because
        its adapter was removed. Waiting sequences are not affected."""
        logger.exception("a batch of %d sequences failed", len(batch))
        self._ahead = None
        return [self._finish(one, "error") for one in batch if one.is_running]

    def generate(self, requests: Iterable[GenerationRequest]) -> list[Completion]:
        """Runs all requests to their ends and gives their completions in order. Nothing else may
        use the engine meanwhile."""
        return list(self.complete(requests))

    def complete(self, requests: Iterable[GenerationRequest]) -> Generator[Completion, None, None]:
        """Yields completions in order, as `generate` gives them. It takes the next request only
        when a slot is free, so there may be more requests than fit in memory."""
        parts: dict[int, list[Delta]] = {}
        for request in requests:
            parts[self.submit(request)] = []
            while self._num_unfinished >= self._runner.cache.num_slots:
                yield from self._step_completions(parts)
        while parts:
            yield from self._step_completions(parts)

    def _step_completions(self, parts: dict[int, list[Delta]]) -> Iterator[Completion]:
        """Runs one step, then removes from the front of `parts` the requests that have ended and
        yields their completions."""
        for delta in self.step():
            parts[delta.request_id].append(delta)
        while parts:
            first, deltas = next(iter(parts.items()))
            if not deltas or deltas[-1].finish_reason is None:
                return
            del parts[first]
            yield Completion.join(deltas)

    def stream(self, request: GenerationRequest) -> Generator[Delta, None, None]:
        """Yields one request's output as it arrives. Closing the iterator cancels the request.
        Nothing else may use the engine meanwhile."""
        request_id = self.submit(request)
        finished = False
        try:
            while not finished:
                for delta in self.step():
                    finished = delta.finish_reason is not None
                    yield delta
        finally:
            if not finished:
                self.cancel(request_id)
                self.step()

    def check(self, request: GenerationRequest) -> None:
        """Raises ConfigError for a request that `submit` would refuse."""
        adapters = self._adapters.names if self._adapters else []
        request.check(self._config, self.max_sequence, adapters)

    def _advance(self, generation: Generation, token: int, logprob: TokenLogprob | None) -> Delta:
        if token == NO_TOKEN:
            logger.error("request %d: the model's logits are not finite", generation.id)
            return self._finish(generation, "error")
        try:
            is_complete = self._runner.sampler.accept(generation, token)
        except GrammarFailure as failure:
            logger.error("request %d: its grammar: %s", generation.id, failure)
            return self._finish(generation, "error")
        self._completion_tokens += 1
        delta = generation.add(token, logprob, is_complete=is_complete)
        if delta.finish_reason is not None:
            self._scheduler.release(generation)
        return delta

    def _finish(self, generation: Generation, reason: FinishReason) -> Delta:
        delta = generation.finish(reason)
        self._scheduler.release(generation)
        return delta

    def _cancelled(self, request_ids: Iterable[int]) -> list[Delta]:
        deltas = []
        for request_id in request_ids:
            waiting = (g for g in self._scheduler.waiting if g.id == request_id)
            generation = self._scheduler.running.get(request_id) or next(waiting, None)
            if generation is not None:
                deltas.append(self._finish(generation, "cancelled"))
        return deltas

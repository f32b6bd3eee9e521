"""A model with its name, tokenizer and engine: API requests in, generation requests out."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from minimind.data.chat_encoding import Chat
from minimind.data.chat_format import BadChat, read_chat
from minimind.data.text_format import surrogate_problem
from minimind.data.tokenizer import Tokenizer
from minimind.errors import DataError
from minimind.inference.grammar import Grammar
from minimind.inference.request import GenerationRequest
from minimind.serving.api_errors import ApiError
from minimind.serving.chat_prompt import chat_prompt
from minimind.serving.engine_thread import EngineThread
from minimind.serving.request_schemas import ChatRequest, CompletionRequest
from minimind.serving.response_schemas import ModelCard


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    name: str
    tokenizer: Tokenizer
    thread: EngineThread
    max_new_tokens: int
    """A request may ask for no more."""
    adapter: str | None = None
    """Of the engine's, by which this model differs from another that shares the engine."""
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def context(self) -> int:
        return self.thread.engine.max_sequence

    @property
    def card(self) -> ModelCard:
        return ModelCard(id=self.name, created=self.created, max_model_len=self.context)

    def chat_requests(self, body: ChatRequest) -> tuple[list[GenerationRequest], bool]:
        """One for each choice, and whether they begin inside a thinking block. Raises ApiError."""
        try:
            turns = [message.as_turn() for message in body.messages]
            chat = read_chat(turns, '"messages"', needs_answer=False)
            chat = Chat(chat.messages, body.offered_tools)
            prompt = chat_prompt(self.tokenizer, chat, body.thinks)
        except (BadChat, DataError) as error:
            raise ApiError(400, str(error), param="messages") from None
        asked = body.max_completion_tokens or body.max_tokens
        grammars, in_reasoning = self.thread.engine.grammars, prompt.in_reasoning
        grammar = body.answer_grammar(grammars, self.tokenizer, in_reasoning)
        return self._requests(body, [prompt.ids], asked, body.num_logprobs, grammar), in_reasoning

    def completion_requests(self, body: CompletionRequest) -> list[GenerationRequest]:
        """Those of the first prompt, then of the next. Raises ApiError."""
        given = body.prompt
        prompts = given if isinstance(given, list) and not isinstance(given[0], int) else [given]
        ids = [self._encode(prompt) for prompt in prompts]
        grammar = body.answer_grammar(self.thread.engine.grammars, self.tokenizer, False)
        return self._requests(body, ids, body.max_tokens or 16, body.logprobs, grammar)

    def _encode(self, prompt: object) -> list[int]:
        """A text is a document's beginning; ids are taken as they are."""
        if not isinstance(prompt, str):
            assert isinstance(prompt, list)
            return prompt
        if problem := surrogate_problem(prompt, "the prompt"):
            raise ApiError(400, problem, param="prompt")
        return [self.tokenizer.bos_id, *self.tokenizer.encode(prompt)]

    def _requests(
        self,
        body: ChatRequest | CompletionRequest,
        prompts: list[list[int]],
        asked: int | None,
        logprobs: int | None,
        grammar: Grammar | None,
    ) -> list[GenerationRequest]:
        requests = []
        for ids in prompts:
            room = self.context - len(ids)
            wanted = min(room, self.max_new_tokens) if asked is None else asked
            if wanted > self.max_new_tokens:
                raise ApiError(
                    400,
                    f"max_tokens is {wanted}; this server gives at most {self.max_new_tokens}",
                    param="max_tokens",
                )
            if wanted > room or room < 1:
                raise ApiError(
                    400,
                    f"this model's context is {self.context} tokens; the prompt has {len(ids)} and "
                    f"{max(wanted, 1)} more are asked for: shorten one of them",
                    code="context_length_exceeded",
                )
            for choice in range(body.num_choices):
                params = body.sampling_params(wanted, logprobs, choice, grammar)
                stop_ids = (self.tokenizer.eos_id, self.tokenizer.pad_id)
                requests.append(
                    GenerationRequest(
                        prompt_ids=ids, params=params, stop_ids=stop_ids, adapter=self.adapter
                    )
                )
        return requests

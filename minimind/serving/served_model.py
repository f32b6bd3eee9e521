"""Serves a model under its name: turns API requests into generation requests for its engine."""

from __future__ import annotations

import bisect
import time
from dataclasses import dataclass, field
from typing import Any

from minimind.data.chat_encoding import Chat
from minimind.data.tokenizer import Tokenizer
from minimind.errors import DataError
from minimind.inference.chat_prompt import ChatPrompt, PromptTooLongError, chat_prompt
from minimind.inference.grammar import Grammar
from minimind.inference.logprobs import TokenLogprob
from minimind.inference.request import GenerationRequest
from minimind.serving.api_errors import ApiError
from minimind.serving.engine_thread import EngineThread
from minimind.serving.message_schemas import RequestPart, read_turns, split_open_thought
from minimind.serving.request_schemas import (
    AnyRequest,
    ChatRequest,
    ConversationFields,
    GenerationRequestFields,
)
from minimind.serving.response_schemas import ModelCard
from minimind.serving.text_schemas import (
    CompletionRequest,
    EmbeddingRequest,
    Texts,
    TokenizeRequest,
    each_text,
)

_TOO_LONG = "context_length_exceeded"
_SYSTEM = ("system", "developer")
_CUT_OR_COUNTED = 16
"""How many contexts a text may have that is cut afterwards or whose tokens are only counted."""


@dataclass(frozen=True, slots=True)
class Echo:
    """Holds a prompt that is repeated at the beginning of its completion: its text, and its
    log-probabilities if they are wanted."""

    text: str
    logprobs: list[TokenLogprob]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    name: str
    tokenizer: Tokenizer
    thread: EngineThread
    max_new_tokens: int
    """The most tokens that a request may ask for."""
    adapter: str | None = None
    """The engine's adapter that this model uses; other models may share the engine."""
    parses_special: bool = False
    """True where special tokens in a prompt's text are read as tokens, unless the request says
    otherwise."""
    notice: str | None = None
    """What people who chat with the model should know (ModelCard)."""
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def context(self) -> int:
        return self.thread.engine.max_sequence

    @property
    def card(self) -> ModelCard:
        return ModelCard(
            id=self.name, created=self.created, max_model_len=self.context, notice=self.notice
        )

    def chat_requests(self, body: ChatRequest) -> tuple[list[GenerationRequest], bool]:
        """Builds a generation request for each choice, and tells whether answers begin inside a
        thinking block. Raises ApiError."""
        prompt = self.chat_prompt(body)
        grammars, in_reasoning = self.thread.engine.grammars, prompt.in_reasoning
        grammar = body.answer_grammar(grammars, self.tokenizer, in_reasoning)
        return self._requests(body, [prompt.ids], body.num_logprobs, grammar), in_reasoning

    def without_oldest(self, body: ChatRequest) -> ChatRequest:
        """Drops the oldest turns for which the context has no room. The rest begins with a user's
        turn; leading system turns stay. Raises ApiError."""
        room = self.context - (body.wanted_tokens or 1)
        first = next((i for i, m in enumerate(body.messages) if m.role not in _SYSTEM), 0)
        starts = [i for i, m in enumerate(body.messages) if i > first and m.role == "user"]

        def from_turn(start: int) -> ChatRequest:
            return body.model_copy(
                update={"messages": [*body.messages[:first], *body.messages[start:]]}
            )

        def fits(start: int) -> bool:
            try:
                return len(self.chat_prompt(from_turn(start)).ids) <= room
            except ApiError as error:
                if error.code != _TOO_LONG:
                    raise
                return False

        if not starts or fits(first):
            return body
        # The last user turn is taken even if it is too long; the client is then told so.
        place = bisect.bisect_left(starts[:-1], True, key=fits)
        return from_turn(starts[place])

    def chat_prompt(self, body: ConversationFields) -> ChatPrompt:
        """Renders the conversation to the tokens before the answer. Raises ApiError where the
        template refuses the messages."""
        turns = read_turns(body.messages)
        if body.continues:
            turns[-1] = self._unfinished(body, turns[-1])
        given = {"reasoning_effort": body.reasoning_effort, "verbosity": body.verbosity}
        options = {name: value for name, value in given.items() if value is not None}
        try:
            return chat_prompt(
                self.tokenizer,
                Chat(turns, body.offered_tools),
                body.thinks,
                opens_turn=body.add_generation_prompt is not False,
                continues=body.continues,
                options=options | (body.chat_template_kwargs or {}),
                max_tokens=self._most_tokens(body),
            )
        except PromptTooLongError as error:
            raise self._too_long(error.least_tokens, 0, most=self._most_tokens(body)) from None
        except DataError as error:
            raise ApiError(400, str(error), param="messages") from None

    def completion_requests(
        self, body: CompletionRequest, prompts: list[list[int]]
    ) -> list[GenerationRequest]:
        """Builds the generation requests: all choices of the first prompt, then of the next. Raises
        ApiError."""
        grammar = body.answer_grammar(
            self.thread.engine.grammars, self.tokenizer, after_thinking=False
        )
        return self._requests(body, prompts, body.logprobs, grammar)

    def read_texts(
        self, body: CompletionRequest | EmbeddingRequest, texts: Texts, param: str
    ) -> list[list[int]]:
        """Gives the ids of each text. A string is encoded as the beginning of a document; ids are
        taken as they are. Raises ApiError."""
        parses = self.parses_special if body.parse_special is None else body.parse_special
        begins = body.add_special_tokens is not False
        found = []
        for text in each_text(texts):
            if isinstance(text, str):
                text = self.encode(body, text, begins=begins, parses_special=parses)
            ids = body.truncated(text, self.context)
            if not ids:
                raise ApiError(400, f"{param} is empty, so nothing can follow it", param=param)
            if len(ids) > self.context:
                raise self._too_long(len(ids), 0)
            found.append(ids)
        return found

    def encode(
        self, body: AnyRequest, text: str, *, begins: bool, parses_special: bool
    ) -> list[int]:
        """Encodes a text of the request `body`. With `begins`, it starts with the tokens that begin
        a document, which are not repeated if the text spells them itself. Raises ApiError for a
        text with so many bytes that it cannot fit: encoding it would take the time that other
        calls need."""
        most = self._most_tokens(body)
        if (least := self.tokenizer.least_tokens(text)) > most:
            raise self._too_long(least, 0, most=most)
        start = self.tokenizer.document_start if begins else []
        if not parses_special:
            return [*start, *self.tokenizer.encode(text)]
        ids = self.tokenizer.encode_rendered(text)
        return ids if ids[: len(start)] == start else [*start, *ids]

    def spelled_tokens(self, text: str) -> list[str]:
        """Lists the special tokens that a text spells."""
        special = self.tokenizer.special_ids
        return [
            token
            for token, id in self.tokenizer.added_ids.items()
            if id in special and token in text
        ]

    async def echoes(self, body: CompletionRequest, prompts: list[list[int]]) -> list[Echo]:
        """Gives the echo of each prompt, with log-probabilities if they were requested. Raises
        ApiError."""
        echoes = []
        for text, ids in zip(each_text(body.prompt), prompts, strict=True):
            skips = body.skip_special_tokens is not False
            shown = text
            if not isinstance(shown, str) or body.truncate_prompt_tokens is not None:
                shown = self.tokenizer.decode(ids, skips)
            found: list[TokenLogprob] = []
            if (num_top := body.logprobs) is not None:
                found = await self.thread.read(
                    lambda reader, ids=ids, num=num_top: reader.logprobs(ids, num, self.adapter)
                )
            echoes.append(Echo(shown, found))
        return echoes

    async def embedding(self, ids: list[int]) -> list[float]:
        return await self.thread.read(lambda reader: reader.embedding(ids, self.adapter))

    def unread_options(self, body: ConversationFields) -> list[str]:
        """Lists the requested template variables that the chat template does not read."""
        known = (self.tokenizer.chat_template or "") + " enable_thinking open_thinking"
        unread = [
            f"chat_template_kwargs.{name}"
            for name in body.chat_template_kwargs or {}
            if name not in known
        ]
        asks = body.verbosity not in (None, "medium") and "verbosity" not in known
        return [*unread, "verbosity"] if asks else unread

    def _unfinished(self, body: ConversationFields, turn: dict[str, Any]) -> dict[str, Any]:
        where = f"messages[{len(body.messages) - 1}]"
        if body.add_generation_prompt:
            raise ApiError(
                400,
                "continue_final_message and add_generation_prompt exclude each other: send one",
                param="continue_final_message",
            )
        if turn["role"] != "assistant" or turn.get("tool_calls"):
            raise ApiError(
                400,
                f"{where} cannot be continued: it must be an assistant's text without tool_calls",
                param="continue_final_message",
            )
        return split_open_thought(turn)

    def _most_tokens(self, body: RequestPart) -> int:
        """Gives the most tokens that a text may have before it is cut: the context's, or several
        times as many where the request cuts the text or only wants its tokens."""
        is_cut = getattr(body, "truncate_prompt_tokens", None) is not None
        return self.context * (
            _CUT_OR_COUNTED if is_cut or isinstance(body, TokenizeRequest) else 1
        )

    def _too_long(self, num_ids: int, wanted: int, most: int = 0) -> ApiError:
        more = f" and {wanted} more are asked for" if wanted else ""
        has = f"at least {num_ids} by its bytes" if most else f"{num_ids}{more}"
        limit = f", of which {most} can be read" if most > self.context else ""
        return ApiError(
            400,
            f"this model's context is {self.context} tokens{limit}; the prompt has {has}: "
            "shorten one of them",
            code=_TOO_LONG,
        )

    def _requests(
        self,
        body: GenerationRequestFields,
        prompts: list[list[int]],
        logprobs: int | None,
        grammar: Grammar | None,
    ) -> list[GenerationRequest]:
        asked = body.wanted_tokens
        own_stops = () if body.ignore_eos else (self.tokenizer.eos_id, self.tokenizer.pad_id)
        requests = []
        for prompt in prompts:
            ids = body.truncated(prompt, self.context)
            room = self.context - len(ids)
            wanted = min(room, self.max_new_tokens) if asked is None else asked
            if wanted > self.max_new_tokens:
                raise ApiError(
                    400,
                    f"max_tokens is {wanted}; this server gives at most {self.max_new_tokens}",
                    param="max_tokens",
                )
            if wanted > room or (asked is None and room < 1):
                raise self._too_long(len(ids), max(wanted, 1))
            for choice in range(body.num_choices):
                requests.append(
                    GenerationRequest(
                        prompt_ids=ids,
                        params=body.sampling_params(
                            choice,
                            max_new_tokens=wanted,
                            stop=body.stops,
                            logit_bias=body.biases,
                            grammar=grammar,
                            logprobs=logprobs,
                        ),
                        stop_ids=(*own_stops, *(body.stop_token_ids or ())),
                        # A client that sums log-probabilities needs the one of the end token too.
                        gives_stop=logprobs is not None and isinstance(body, CompletionRequest),
                        skips_special=body.skip_special_tokens is not False,
                        adapter=self.adapter,
                    )
                )
        return requests

"""Defines the requests that clients send: OpenAI's fields, and some of vLLM and llama.cpp.

Each field is honoured, or marked as refused or without effect (field_standing.py). A field that no
schema has is named in a header of the response and in the log. So no field is dropped silently.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from minimind.config.tags import END_CALL
from minimind.inference.answer_parser import AnswerParser
from minimind.serving.field_standing import NoEffect, Off, OthersRefused, Refused
from minimind.serving.message_schemas import Message, RequestPart, Tool
from minimind.serving.sampling_fields import SamplingFields
from minimind.serving.structured_output import StructuredFields
from minimind.serving.thoughts import ThoughtFormat
from minimind.serving.tool_choice import ChatFormFields

MAX_CHOICES = 16
MAX_TOP_LOGPROBS = 20

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Limit = Annotated[int | None, Field(ge=1, lt=2**31), Off(-1)]
Side = Literal["left", "right"]
Truncation = Annotated[int, Field(ge=1, lt=2**31)] | Literal[-1] | None
Verbosity = Literal["low", "medium", "high"]
_TEMPLATE_OWN = ("messages", "tools", "add_generation_prompt", "continue_final_message")


class StreamOptions(RequestPart):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    """With `include_usage`: every chunk has the usage so far."""
    include_obfuscation: Annotated[Any, NoEffect("nothing is padded")] = None


class Thinking(RequestPart):
    type: Literal["enabled", "disabled"]


class AnyRequest(RequestPart):
    """Holds the fields of requests to all endpoints."""

    model: Annotated[str | None, Off("")] = None
    """May be left out if the server has one model."""
    user: Annotated[Any, NoEffect("users are not distinguished")] = None
    request_id: Annotated[Any, NoEffect("the server gives each call its own")] = None
    priority: Annotated[Any, NoEffect("first come, first served")] = None

    @field_validator("*", mode="before")
    @classmethod
    def _read_whole_numbers(cls, value: Any) -> Any:
        return _whole(value)


class GenerationRequestFields(StructuredFields, SamplingFields, AnyRequest):
    """Holds the fields of requests that continue a prompt."""

    max_tokens: Limit = None
    """The most tokens of the answer, within the server's limit. The default is the rest of the
    context; in /v1/completions it is 16."""
    n_predict: Annotated[int | None, Field(ge=1, lt=2**31), Off(-1, -2)] = None
    """llama.cpp's name for `max_tokens`; used if that is not given."""
    truncate_prompt_tokens: Truncation = None
    """Keeps only this many tokens at the prompt's end; -1 keeps as many as leave room for the
    answer."""
    truncation_side: Side | None = None
    """The side on which the prompt is cut; right keeps its beginning instead."""
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    """Strings that end the text and are not part of it; empty strings are ignored."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None
    """True: the text goes on after the end of the turn or text."""
    stop_token_ids: Annotated[list[Annotated[int, Field(ge=0)]] | None, Field(max_length=64)] = None
    """Tokens that end the text and are not part of it."""
    skip_special_tokens: bool | None = None
    """False: special tokens that are generated appear in the text."""

    store: Annotated[Any, NoEffect("nothing is kept")] = None
    metadata: Annotated[Any, NoEffect("nothing is kept")] = None
    service_tier: Annotated[Any, NoEffect("there is one tier")] = None
    safety_identifier: Annotated[Any, NoEffect("users are not distinguished")] = None
    prompt_cache_key: Annotated[Any, NoEffect("prompts are cached automatically")] = None
    prompt_cache_retention: Annotated[Any, NoEffect("prompts are cached automatically")] = None
    prompt_cache_options: Annotated[Any, NoEffect("prompts are cached automatically")] = None
    cache_prompt: Annotated[Any, NoEffect("prompts are cached automatically")] = None
    cache_salt: Annotated[Any, NoEffect("the prompt cache does not change the text")] = None
    id_slot: Annotated[Any, NoEffect("the server assigns the slots")] = None
    timings_per_token: Annotated[Any, NoEffect("/metrics has times")] = None
    return_progress: Annotated[Any, NoEffect("progress is not reported before the first token")] = (
        None
    )
    n_keep: Annotated[Any, NoEffect("a context is never shifted")] = None
    n_discard: Annotated[Any, NoEffect("a context is never shifted")] = None
    backend_sampling: Annotated[Any, NoEffect("the server decides where tokens are chosen")] = None
    kv_transfer_params: Annotated[Any, NoEffect("each server has a cache of its own")] = None
    mm_processor_kwargs: Annotated[Any, NoEffect("the model reads text alone")] = None
    media_io_kwargs: Annotated[Any, NoEffect("the model reads text alone")] = None
    moderation: Annotated[Any, NoEffect("nothing is moderated")] = None
    spaces_between_special_tokens: Annotated[Any, NoEffect("tokens include their spaces")] = None
    include_stop_str_in_output: Annotated[Any, Refused("add it to the text", False)] = None
    prompt_logprobs: Annotated[Any, Refused("send `echo` to /v1/completions")] = None
    return_tokens: Annotated[Any, Refused("/tokenize gives ids", False)] = None
    return_token_ids: Annotated[Any, Refused("/tokenize gives ids", False)] = None
    return_tokens_as_token_ids: Annotated[Any, Refused("/tokenize gives ids", False)] = None
    n_probs: Annotated[Any, Refused("send `logprobs`", 0)] = None
    post_sampling_probs: Annotated[Any, Refused("send `logprobs`", False)] = None
    t_max_predict_ms: Annotated[Any, Refused("send `max_tokens`", 0, -1)] = None
    n_indent: Annotated[Any, Refused("leave it out", 0)] = None
    response_fields: Annotated[Any, Refused("all are given", [])] = None
    lora: Annotated[Any, Refused("adapters are models: send `model`", [])] = None
    vllm_xargs: Annotated[Any, Refused("leave it out", {})] = None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage is True

    @property
    def continuous_usage(self) -> bool:
        return self.include_usage and self.stream_options.continuous_usage_stats is True  # type: ignore[union-attr]

    @property
    def num_choices(self) -> int:
        return 1

    @property
    def wanted_tokens(self) -> int | None:
        """Gives the most tokens that the client wants in the answer; None for the rest of the
        context."""
        return self.max_tokens or self.n_predict

    def truncated(self, ids: list[int], context: int) -> list[int]:
        """Gives the part of the prompt that `truncate_prompt_tokens` keeps."""
        wanted = self.truncate_prompt_tokens
        if wanted is None:
            return ids
        kept = max(context - (self.wanted_tokens or 1), 1) if wanted == -1 else wanted
        return ids[:kept] if self.truncation_side == "right" else ids[-kept:]

    @property
    def stops(self) -> tuple[str, ...]:
        given = [self.stop] if isinstance(self.stop, str) else self.stop or ()
        return tuple(stop for stop in given if stop)


class ConversationFields(RequestPart):
    """Holds the fields that decide how a conversation becomes a prompt."""

    messages: Annotated[list[Message], Field(min_length=1)]
    tools: list[Tool] | None = None
    add_generation_prompt: bool | None = None
    """False: nothing is written after the last message."""
    continue_final_message: bool | None = None
    """True: the last message is the assistant's, and the answer continues it."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables of the chat template, by name."""
    reasoning_effort: Effort | None = None
    """Turns thinking on for every level above minimal."""
    enable_thinking: bool | None = None
    thinking: Thinking | None = None
    """DeepSeek's form of `enable_thinking`."""
    verbosity: Verbosity | None = None
    """A variable of the chat template. If the template does not read it, it is reported like an
    unknown field; medium has no effect."""
    chat_template: Annotated[Any, Refused("the model's own is used")] = None
    documents: Annotated[Any, Refused("write them into a message", [])] = None

    @field_validator("chat_template_kwargs")
    @classmethod
    def _check_template_options(cls, options: dict[str, Any] | None) -> dict[str, Any] | None:
        for name in _TEMPLATE_OWN:
            if name in (options or {}):
                raise PydanticCustomError(
                    "value_error", "{name} stands beside it, not in it", {"name": name}
                )
        for name in ("enable_thinking", "open_thinking"):
            if options and not isinstance(options.get(name), bool | None):
                raise PydanticCustomError("value_error", "{name} is no boolean", {"name": name})
        return options

    @property
    def thinks(self) -> bool:
        """Tells whether the model is to think. If several fields decide it, the one nearest to the
        template counts."""
        options = self.chat_template_kwargs or {}
        asked = [options.get("enable_thinking"), options.get("open_thinking"), self.enable_thinking]
        if self.thinking is not None:
            asked.append(self.thinking.type == "enabled")
        asked.append(self.reasoning_effort not in (None, "none", "minimal"))
        return next(value for value in asked if value is not None)

    @property
    def continues(self) -> bool:
        return bool(self.continue_final_message or self.messages[-1].prefix)

    @property
    def offered_tools(self) -> list[dict[str, Any]] | None:
        return [tool.declared() for tool in self.tools] if self.tools else None


class ChatRequest(ConversationFields, ChatFormFields, GenerationRequestFields):
    """Defines the body of /v1/chat/completions."""

    max_completion_tokens: Limit = None
    """The same as `max_tokens`, and takes precedence over it."""
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    modalities: list[Literal["text"]] | None = None
    include_reasoning: bool | None = None
    """False: the answer leaves out thoughts."""
    reasoning_format: (
        Annotated[Literal["auto", "deepseek", "none"], OthersRefused("send auto or none")] | None
    ) = None
    """llama.cpp's field: none leaves thoughts in the text, inside their tags."""
    audio: Annotated[Any, Refused("the model writes text alone")] = None
    web_search_options: Annotated[Any, Refused("nothing is searched")] = None
    echo: Annotated[Any, Refused("join the texts", False)] = None
    thinking_token_budget: Annotated[Any, Refused("send `max_tokens`", -1)] = None
    thinking_budget_tokens: Annotated[Any, Refused("send `max_tokens`", -1)] = None
    parse_tool_calls: Annotated[Any, Refused("leave out `tools`", True)] = None
    add_special_tokens: Annotated[Any, Refused("the chat template decides which", False)] = None
    prediction: Annotated[Any, NoEffect("it affects speed alone")] = None

    @property
    def num_choices(self) -> int:
        return self.n or 1

    @property
    def num_logprobs(self) -> int | None:
        """Gives the number of likeliest tokens to report beside the chosen one; None for no
        log-probabilities."""
        wanted = self.logprobs or self.top_logprobs is not None
        return self.top_logprobs or 0 if wanted else None

    @property
    def thoughts(self) -> ThoughtFormat:
        if self.include_reasoning is False:
            return "nowhere"
        return "text" if self.reasoning_format == "none" else "apart"

    @property
    def wanted_tokens(self) -> int | None:
        return self.max_completion_tokens or super().wanted_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        """Gives the stop strings. If only one call is allowed, the end of a call is one of them."""
        # A grammar for calls ends after the single call by itself; and its arguments may contain
        # the tag.
        one_call = self.one_call and self.offered_tools is not None and not self.holds_calls
        return (*super().stops, END_CALL) if one_call else super().stops

    def answer_parser(self, in_reasoning: bool) -> AnswerParser:
        """Makes the parser of one answer, which begins inside a thinking block or behind it."""
        return AnswerParser(
            in_reasoning=in_reasoning,
            with_tools=self.offered_tools is not None,
            calls_alone=self.has_form,
            must_call=self.must_call,
        )

    @property
    def offered_tools(self) -> list[dict[str, Any]] | None:
        tools = () if self.chosen == "none" else self.known_tools
        return [tool.declared() for tool in tools] or None


def _whole(value: Any) -> Any:
    """Reads 1.0 as the integer 1, as JSON Schema and some clients do."""
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value

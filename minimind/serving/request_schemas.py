"""What clients may ask for: OpenAI's fields, and those of vLLM and llama.cpp.

Each field is honoured, or annotated as refused or as without effect (field_standing.py); what no
schema knows is named in the response's header and in the log. So nothing changes what is generated
without a word.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from minimind.inference.answer_parser import END_CALL
from minimind.inference.grammar import Grammar
from minimind.inference.sampling import SamplingParams
from minimind.serving.field_standing import NoEffect, Off, Refused
from minimind.serving.message_schemas import Message, RequestPart, Tool
from minimind.serving.structured_output import StructuredFields
from minimind.serving.tool_choice import ChatFormFields

MAX_CHOICES = 16
MAX_TOP_LOGPROBS = 20

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Limit = Annotated[int | None, Field(ge=1, lt=2**31), Off(-1)]
_TEMPLATE_OWN = ("messages", "tools", "add_generation_prompt", "continue_final_message")


class StreamOptions(RequestPart):
    include_usage: bool | None = None
    continuous_usage_stats: Annotated[Any, NoEffect("the last chunk has the sums")] = None
    include_obfuscation: Annotated[Any, NoEffect("nothing is padded")] = None


class Thinking(RequestPart):
    type: Literal["enabled", "disabled"]


class AnyRequest(RequestPart):
    """What requests of all endpoints share."""

    model: Annotated[str | None, Off("")] = None
    """May be left out where the server has one model."""
    user: Annotated[Any, NoEffect("users are not told apart")] = None
    request_id: Annotated[Any, NoEffect("each call has the server's own")] = None
    priority: Annotated[Any, NoEffect("first come, first served")] = None

    @field_validator("*", mode="before")
    @classmethod
    def _read_whole_numbers(cls, value: Any) -> Any:
        return _whole(value)


class GenerationRequestFields(StructuredFields, AnyRequest):
    """What requests that continue a prompt share. The ranges are OpenAI's where it has the
    field."""

    max_tokens: Limit = None
    """At most the server's limit; without it what the context leaves (completions: 16)."""
    temperature: float | None = Field(None, ge=0, le=2)
    """0 takes the likeliest token; 1 unless given."""
    top_p: float | None = Field(None, ge=0, le=1)
    """0 keeps the likeliest token alone."""
    seed: Annotated[
        int | None,
        # 2^63 as OpenAI's description rounds it: JSON writes a bound that is no double as another.
        Field(ge=-9_223_372_036_854_776_000, le=9_223_372_036_854_776_000),
        Off(-1),
    ] = None
    """The same request with the same seed gives the same text."""
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    """Strings that end the text and are not part of it; empty ones count for nothing."""
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    top_k: Annotated[int | None, Field(ge=1, lt=2**31), Off(-1, 0)] = None
    """Keep the k likeliest tokens."""
    min_p: float | None = Field(None, ge=0, le=1)
    """Keep tokens of at least this share of the likeliest one's probability."""
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    repeat_penalty: float | None = Field(None, ge=0.01, le=100)
    """`repetition_penalty` by llama.cpp's name."""
    ignore_eos: bool | None = None
    """Go on past the end of the turn or text."""
    stop_token_ids: Annotated[list[Annotated[int, Field(ge=0)]] | None, Field(max_length=64)] = None
    """Tokens that end the text and are not part of it."""
    skip_special_tokens: bool | None = None
    """False writes special tokens that the model makes into the text."""

    store: Annotated[Any, NoEffect("nothing is kept")] = None
    metadata: Annotated[Any, NoEffect("nothing is kept")] = None
    service_tier: Annotated[Any, NoEffect("there is one tier")] = None
    safety_identifier: Annotated[Any, NoEffect("users are not told apart")] = None
    prompt_cache_key: Annotated[Any, NoEffect("prompts are cached by themselves")] = None
    prompt_cache_retention: Annotated[Any, NoEffect("prompts are cached by themselves")] = None
    prompt_cache_options: Annotated[Any, NoEffect("prompts are cached by themselves")] = None
    cache_prompt: Annotated[Any, NoEffect("prompts are cached by themselves")] = None
    cache_salt: Annotated[Any, NoEffect("a prompt's cache shows in no text")] = None
    id_slot: Annotated[Any, NoEffect("slots are the server's affair")] = None
    timings_per_token: Annotated[Any, NoEffect("/metrics has times")] = None
    return_progress: Annotated[Any, NoEffect("nothing is told before the first token")] = None
    moderation: Annotated[Any, NoEffect("nothing is moderated")] = None
    spaces_between_special_tokens: Annotated[Any, NoEffect("tokens hold their own spaces")] = None
    mirostat_tau: Annotated[Any, NoEffect("`mirostat` is off")] = None
    mirostat_eta: Annotated[Any, NoEffect("`mirostat` is off")] = None

    min_tokens: Annotated[Any, Refused("leave it out", 0)] = None
    use_beam_search: Annotated[Any, Refused("tokens are drawn one by one", False)] = None
    length_penalty: Annotated[Any, Refused("there is no beam search", 1)] = None
    include_stop_str_in_output: Annotated[Any, Refused("add it to the text", False)] = None
    bad_words: Annotated[Any, Refused("leave it out", [])] = None
    allowed_token_ids: Annotated[Any, Refused("leave it out", [])] = None
    logits_processors: Annotated[Any, Refused("leave it out", [])] = None
    prompt_logprobs: Annotated[Any, Refused("send `echo` to /v1/completions")] = None
    truncate_prompt_tokens: Annotated[Any, Refused("shorten the prompt")] = None
    return_token_ids: Annotated[Any, Refused("/tokenize gives ids", False)] = None
    return_tokens_as_token_ids: Annotated[Any, Refused("/tokenize gives ids", False)] = None
    n_predict: Annotated[Any, Refused("send `max_tokens`", -1)] = None
    n_probs: Annotated[Any, Refused("send `logprobs`", 0)] = None
    samplers: Annotated[Any, Refused("the order is penalties, temperature, filters")] = None
    typical_p: Annotated[Any, Refused("send `min_p`", 1)] = None
    tfs_z: Annotated[Any, Refused("send `min_p`", 1)] = None
    top_a: Annotated[Any, Refused("send `min_p`", 0)] = None
    mirostat: Annotated[Any, Refused("send `temperature`", 0)] = None
    dynatemp_range: Annotated[Any, Refused("send `temperature`", 0)] = None
    xtc_probability: Annotated[Any, Refused("send `min_p`", 0)] = None
    dry_multiplier: Annotated[Any, Refused("send `repetition_penalty`", 0)] = None
    repeat_last_n: Annotated[Any, Refused("penalties look at all of it", -1)] = None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage is True

    @property
    def num_choices(self) -> int:
        return 1

    @property
    def stops(self) -> tuple[str, ...]:
        given = [self.stop] if isinstance(self.stop, str) else self.stop or ()
        return tuple(stop for stop in given if stop)

    def sampling_params(
        self,
        max_new_tokens: int,
        logprobs: int | None,
        choice: int,
        grammar: Grammar | None = None,
    ) -> SamplingParams:
        """Those of one choice. Temperature and top_p are 1 unless given, as OpenAI has them; the
        choices of one seed differ."""
        return SamplingParams(
            max_new_tokens=max_new_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=self.top_p or 1.0,
            top_k=1 if self.top_p == 0 else self.top_k or 0,
            min_p=self.min_p or 0.0,
            repetition_penalty=self.repetition_penalty or self.repeat_penalty or 1.0,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            seed=None if self.seed is None else (self.seed + choice) % 2**63,
            stop=self.stops,
            logit_bias=self.biases,
            grammar=grammar,
            logprobs=logprobs,
        )


class ConversationFields(RequestPart):
    """What says how a conversation becomes a prompt."""

    messages: Annotated[list[Message], Field(min_length=1)]
    tools: list[Tool] | None = None
    add_generation_prompt: bool | None = None
    """False: nothing is written behind the last message."""
    continue_final_message: bool | None = None
    """The last message is an assistant's, and the answer goes on where it ends."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables of the chat template, by name."""
    reasoning_effort: Effort | None = None
    """Thinking is on or off here: it is on beyond minimal."""
    enable_thinking: bool | None = None
    thinking: Thinking | None = None
    """`enable_thinking` as DeepSeek has it."""
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
        """By the field nearest to the template."""
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
    """The body of /v1/chat/completions."""

    max_completion_tokens: Limit = None
    """Before `max_tokens`, where both are given."""
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    modalities: list[Literal["text"]] | None = None
    functions: Annotated[Any, Refused("send `tools`", [])] = None
    function_call: Annotated[Any, Refused("send `tool_choice`", "none", "auto")] = None
    audio: Annotated[Any, Refused("the model writes text alone")] = None
    web_search_options: Annotated[Any, Refused("nothing is searched")] = None
    verbosity: Annotated[Any, Refused("ask for it in a message", "medium")] = None
    echo: Annotated[Any, Refused("join the texts", False)] = None
    include_reasoning: Annotated[Any, Refused("thoughts stand apart", True)] = None
    reasoning_format: Annotated[Any, Refused("thoughts stand apart", "auto", "deepseek")] = None
    thinking_token_budget: Annotated[Any, Refused("send `max_tokens`", -1)] = None
    add_special_tokens: Annotated[Any, Refused("the chat template says which", False)] = None
    prediction: Annotated[Any, NoEffect("it would be for speed")] = None

    @property
    def num_choices(self) -> int:
        return self.n or 1

    @property
    def num_logprobs(self) -> int | None:
        """How many beside the chosen token's, None for none at all."""
        wanted = self.logprobs or self.top_logprobs is not None
        return self.top_logprobs or 0 if wanted else None

    @property
    def stops(self) -> tuple[str, ...]:
        """The first call's end too, where there shall be one call at most."""
        # A grammar that holds the calls ends with the one, whose arguments may spell the tag.
        one_call = (
            self.parallel_tool_calls is False
            and self.offered_tools is not None
            and not self.holds_calls
        )
        return (*super().stops, END_CALL) if one_call else super().stops

    @property
    def offered_tools(self) -> list[dict[str, Any]] | None:
        return None if self.tool_choice == "none" else super().offered_tools


def _whole(value: Any) -> Any:
    """1.0 is an integer to JSON Schema, and to some clients."""
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value

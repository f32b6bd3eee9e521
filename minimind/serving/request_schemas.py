"""What clients may ask for: OpenAI's fields, and the sampling options it has no name for.

Fields that change what is generated and cannot be honoured are refused; those that change nothing
here (`user`, `store`, `metadata` and the like) are ignored, as are unknown ones, because clients
send what newer versions of the API know.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from minimind.inference.grammar import Grammar
from minimind.inference.sampling import SamplingParams
from minimind.serving.answer_parser import END_CALL
from minimind.serving.structured_output import StructuredFields
from minimind.serving.tool_choice import ChatFormFields

MAX_CHOICES = 16
MAX_TOP_LOGPROBS = 20

NonEmpty = Annotated[str, StringConstraints(min_length=1)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


class _Part(BaseModel):
    """A part of a message. Wrong types are errors, never converted."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class TextPart(_Part):
    type: Literal["text"]
    text: str


class FunctionCall(_Part):
    name: NonEmpty
    arguments: str
    """A JSON object."""


class MessageToolCall(_Part):
    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(_Part):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    reasoning_content: str | None = None
    tool_calls: list[MessageToolCall] | None = None

    def as_turn(self) -> dict[str, Any]:
        """As data/chat_format.py reads turns; a developer's message is the system's."""
        content = self.content
        if isinstance(content, list):
            content = "".join(part.text for part in content)
        turn: dict[str, Any] = {
            "role": "system" if self.role == "developer" else self.role,
            "content": content or "",
        }
        if self.reasoning_content is not None:
            turn["reasoning_content"] = self.reasoning_content
        if self.tool_calls:
            turn["tool_calls"] = [call.model_dump(exclude_none=True) for call in self.tool_calls]
        return turn


class Function(_Part):
    name: NonEmpty
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    """The arguments of a call must be what `parameters` describes."""


class Tool(_Part):
    type: Literal["function"]
    function: Function


class StreamOptions(_Part):
    include_usage: bool = False


class ChatTemplateOptions(_Part):
    enable_thinking: bool | None = None


def _whole(value: Any) -> Any:
    """1.0 is an integer to JSON Schema, and to some clients."""
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


class _GenerationFields(StructuredFields, _Part):
    """What both kinds of completion share. The ranges are OpenAI's where it has the field."""

    model: NonEmpty
    max_tokens: int | None = Field(None, ge=1, lt=2**31)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    # 2^63 as OpenAI's description rounds it: JSON writes a bound that is no double as another one.
    seed: int | None = Field(None, ge=-9_223_372_036_854_776_000, le=9_223_372_036_854_776_000)
    stop: NonEmpty | Annotated[list[NonEmpty], Field(max_length=16)] | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    top_k: int | None = Field(None, ge=0, lt=2**31)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)

    @field_validator("*", mode="before")
    @classmethod
    def _read_whole_numbers(cls, value: Any) -> Any:
        return _whole(value)

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def num_choices(self) -> int:
        return self.n or 1

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

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
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k or 0,
            min_p=self.min_p or 0.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            seed=None if self.seed is None else (self.seed + choice) % 2**63,
            stop=self.stops,
            logit_bias=self.biases,
            grammar=grammar,
            logprobs=logprobs,
        )


class ChatRequest(ChatFormFields, _GenerationFields):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31)
    tools: list[Tool] | None = None
    functions: Annotated[list[Any], Field(max_length=0)] | None = None
    function_call: Literal["none"] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    modalities: list[Literal["text"]] | None = None
    reasoning_effort: Effort | None = None
    """Thinking is on or off here: it is on beyond minimal."""
    enable_thinking: bool | None = None
    chat_template_kwargs: ChatTemplateOptions | None = None

    @property
    def num_logprobs(self) -> int | None:
        """How many beside the chosen token's, None for none at all."""
        wanted = self.logprobs or self.top_logprobs is not None
        return self.top_logprobs or 0 if wanted else None

    @property
    def thinks(self) -> bool:
        options = self.chat_template_kwargs
        if options is not None and options.enable_thinking is not None:
            return options.enable_thinking
        if self.enable_thinking is not None:
            return self.enable_thinking
        return self.reasoning_effort not in (None, "none", "minimal")

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
        if not self.tools or self.tool_choice == "none":
            return None
        return [tool.model_dump(exclude_none=True) for tool in self.tools]


class CompletionRequest(_GenerationFields):
    """The body of /v1/completions."""

    prompt: str | TokenIds | Annotated[list[str | TokenIds], Field(min_length=1, max_length=64)]
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: Literal[False] | None = None
    suffix: Literal[""] | None = None
    best_of: Literal[1] | None = None

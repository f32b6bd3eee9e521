"""Defines the responses API: its request, which is converted to a chat request, and its answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from minimind.serving.api_errors import ApiError
from minimind.serving.field_standing import ByType, NoEffect, OthersRefused, Refused
from minimind.serving.message_schemas import Content, Function, RequestPart, content_text
from minimind.serving.request_schemas import (
    MAX_TOP_LOGPROBS,
    ChatRequest,
    Effort,
    GenerationRequestFields,
    Limit,
    Thinking,
    Verbosity,
)
from minimind.serving.structured_output import FlatSchemaFormat, ObjectFormat, TextFormat
from minimind.serving.tool_choice import FunctionName

OWN_NAMES: dict[str, tuple[str, ...]] = {
    "messages": ("input",),
    "max_completion_tokens": ("max_output_tokens",),
    "reasoning_effort": ("reasoning", "effort"),
    "response_format": ("text", "format"),
    "verbosity": ("text", "verbosity"),
}
"""The names here of fields that have other names in the chat API."""
_IN_FULL = "send the whole conversation as `input`"


class InputItem(RequestPart):
    """Holds a turn, or one part of an assistant's turn."""

    type: Annotated[
        Literal["message", "function_call", "function_call_output", "reasoning"],
        OthersRefused("send what it stands for"),
    ] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Content = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: Content = None
    summary: Content = None
    id: Annotated[Any, NoEffect("nothing is kept")] = None
    status: Annotated[Any, NoEffect("an answer's, sent back")] = None
    phase: Annotated[Any, NoEffect("an answer's, sent back")] = None
    encrypted_content: Annotated[Any, NoEffect("thoughts are plain text")] = None


class FunctionTool(Function):
    type: Annotated[Literal["function"], OthersRefused("only functions of yours are called")]


class NamedTool(FunctionName):
    type: Literal["function"]


class AllowedTools(RequestPart):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1)]


FlatToolChoice = Annotated[
    Literal["auto", "none", "required"] | NamedTool | AllowedTools, ByType("function")
]


class Reasoning(RequestPart):
    effort: Effort | None = None
    summary: Annotated[Any, NoEffect("thoughts are given whole")] = None
    generate_summary: Annotated[Any, NoEffect("thoughts are given whole")] = None


class TextOptions(RequestPart):
    format: Annotated[TextFormat | ObjectFormat | FlatSchemaFormat, ByType()] | None = None
    verbosity: Verbosity | None = None
    """Works as in /v1/chat/completions."""


class ResponsesRequest(GenerationRequestFields):
    """Defines the body of /v1/responses."""

    input: str | Annotated[list[InputItem], Field(min_length=1)]
    """A user's text, or the conversation as a list of items."""
    instructions: str | None = None
    """A system message that is put before the input."""
    max_output_tokens: Limit = None
    tools: list[FunctionTool] | None = None
    tool_choice: FlatToolChoice | None = None
    """Works as in /v1/chat/completions."""
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: TextOptions | None = None
    """The form of the text. `format` takes the values of `response_format` in
    /v1/chat/completions."""
    chat_template_kwargs: dict[str, Any] | None = None
    enable_thinking: bool | None = None
    thinking: Thinking | None = None
    max_tokens: Annotated[Any, Refused("send `max_output_tokens`")] = None
    previous_response_id: Annotated[Any, Refused(_IN_FULL)] = None
    conversation: Annotated[Any, Refused(_IN_FULL)] = None
    prompt: Annotated[Any, Refused(_IN_FULL)] = None
    background: Annotated[Any, Refused("wait for the answer, or stream it", False)] = None
    truncation: Literal["auto", "disabled"] | None = None
    """auto: the oldest turns for which the context has no room are left out."""
    context_management: Annotated[Any, Refused("shorten the input", [])] = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    """The number of likeliest tokens to report with each token of the text."""
    include: list[str] | None = None
    """message.output_text.logprobs reports the log-probabilities of the text's tokens. All other
    values name parts that are always given, or results of built-in tools."""
    max_tool_calls: Annotated[
        Any, NoEffect("it counts built-in tools, of which there are none")
    ] = None

    @property
    def wants_logprobs(self) -> bool:
        return bool(self.top_logprobs) or "message.output_text.logprobs" in (self.include or ())

    def as_chat(self) -> ChatRequest:
        """Converts the request to a chat request. Raises ApiError for an incomplete item, and
        pydantic's ValidationError for what the chat API refuses."""
        shared = self.model_fields_set & set(GenerationRequestFields.model_fields)
        fields: dict[str, Any] = {name: getattr(self, name) for name in shared}
        fields["messages"] = self._messages()
        fields["max_completion_tokens"] = self.max_output_tokens
        if self.wants_logprobs:
            fields |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        for name in (
            "parallel_tool_calls", "chat_template_kwargs", "enable_thinking", "thinking",
        ):  # fmt: skip
            fields[name] = getattr(self, name)
        if self.tools:
            fields["tools"] = [_nest(tool.declared(), "function") for tool in self.tools]
        fields["tool_choice"] = _nested_choice(self.tool_choice)
        if self.reasoning is not None:
            fields["reasoning_effort"] = self.reasoning.effort
        if self.text is not None:
            fields["verbosity"] = self.text.verbosity
        if self.text is not None and self.text.format:
            is_schema = isinstance(self.text.format, FlatSchemaFormat)
            form = self.text.format.model_dump(by_alias=True, exclude_unset=True)
            fields["response_format"] = _nest(form, "json_schema") if is_schema else form
        return ChatRequest.model_validate(fields)

    def _messages(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        if self.instructions:
            messages.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            return [*messages, {"role": "user", "content": self.input}]
        for number, item in enumerate(self.input):
            _add_item(messages, item, f"input[{number}]")
        return messages


def _nested_choice(choice: str | NamedTool | AllowedTools | None) -> Any:
    match choice:
        case NamedTool():
            return _nest(choice.declared(), "function")
        case AllowedTools():
            tools = [_nest(tool.declared(), "function") for tool in choice.tools]
            return {"type": choice.type, choice.type: {"mode": choice.mode, "tools": tools}}
    return choice


def _nest(flat: dict[str, Any], key: str) -> dict[str, Any]:
    """Converts {type, name, …} to the chat API's form, {type, key: {name, …}}."""
    return {"type": flat.pop("type", key), key: flat}


def _add_item(messages: list[dict[str, Any]], item: InputItem, where: str) -> None:
    """Adds an item to the messages. An assistant's thoughts, text and calls are separate items,
    which are joined to one turn."""
    needed = {
        "message": ("role",),
        "function_call": ("name", "arguments", "call_id"),
        "function_call_output": ("call_id",),
        "reasoning": (),
    }[item.type]
    for name in needed:
        if getattr(item, name) is None:
            raise ApiError(400, f"{where}.{name} is missing", param=f"{where}.{name}")
    last = messages[-1] if messages and messages[-1]["role"] == "assistant" else None
    if item.type == "function_call_output":
        content = content_text(item.output)
        messages.append({"role": "tool", "content": content, "tool_call_id": item.call_id})
    elif item.type == "message" and item.role != "assistant":
        messages.append({"role": item.role, "content": item.content})
    elif item.type == "reasoning":
        thought = content_text(item.content) or content_text(item.summary)
        messages.append({"role": "assistant", "content": "", "reasoning_content": thought})
    elif item.type == "message":
        if last is None or last["content"] or "tool_calls" in last:
            messages.append(last := {"role": "assistant", "content": ""})
        last["content"] = item.content
    else:
        if last is None:
            messages.append(last := {"role": "assistant", "content": ""})
        function = {"name": item.name, "arguments": item.arguments}
        call = {"id": item.call_id, "type": "function", "function": function}
        last.setdefault("tool_calls", []).append(call)


class OutputText(BaseModel):
    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[Any] = []
    logprobs: list[Any] = []


class ReasoningText(BaseModel):
    type: Literal["reasoning_text"] = "reasoning_text"
    text: str


class OutputItem(BaseModel):
    """Is a message, a thought or a call, each with further fields of its kind."""

    model_config = ConfigDict(extra="allow")
    id: str
    type: Literal["message", "reasoning", "function_call"]
    status: Literal["in_progress", "completed", "incomplete"]


class InputDetails(BaseModel):
    cached_tokens: int
    cache_write_tokens: int = 0


class OutputDetails(BaseModel):
    reasoning_tokens: int


class ResponseUsage(BaseModel):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    """The number of tokens in thoughts, counted by encoding them again."""
    total_tokens: int


class ResponseObject(BaseModel):
    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["in_progress", "completed", "incomplete"]
    error: None = None
    incomplete_details: dict[str, str] | None = None
    instructions: str | None
    metadata: dict[str, Any]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    temperature: float | None
    top_p: float | None
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    usage: ResponseUsage | None = None


class ResponseEvent(BaseModel):
    """Is an event of a stream, with further fields of its type."""

    model_config = ConfigDict(extra="allow")
    type: str
    sequence_number: int

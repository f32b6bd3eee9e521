"""Defines messages and tools as clients send them, and converts them to the turns of a chat
template.

Values of wrong types are errors and are never converted; unknown fields are kept, to be reported.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints

from minimind.config.tags import END_THINK, THINK
from minimind.serving.api_errors import ApiError
from minimind.serving.field_standing import NoEffect, OthersRefused, Refused
from minimind.serving.json_body import read_json

NonEmpty = Annotated[str, StringConstraints(min_length=1)]
_ROLES = {"developer": "system", "function": "tool"}


class RequestPart(BaseModel):
    """Is the base of all parts of a request."""

    model_config = ConfigDict(
        strict=True, allow_inf_nan=False, extra="allow", use_attribute_docstrings=True
    )

    def declared(self) -> dict[str, Any]:
        """Gives the known fields that were sent, as JSON values."""
        return self.model_dump(include=_tree(self), exclude_none=True)


class ContentPart(RequestPart):
    """Holds a piece of a message's text, in the form of the chat API or the responses API."""

    type: Annotated[
        Literal["text", "input_text", "output_text", "reasoning_text", "summary_text", "refusal"],
        OthersRefused("the model reads text alone"),
    ]
    text: str | None = None
    refusal: str | None = None
    annotations: Annotated[Any, NoEffect("an answer's, sent back")] = None
    logprobs: Annotated[Any, NoEffect("an answer's, sent back")] = None
    cache_control: Annotated[Any, NoEffect("prompts are cached automatically")] = None


Content = str | list[str | ContentPart] | None


def content_text(content: Content) -> str:
    """Gives the text of all pieces, joined without separator."""
    if isinstance(content, list):
        return "".join(
            part if isinstance(part, str) else part.text or part.refusal or "" for part in content
        )
    return content or ""


class FunctionCall(RequestPart):
    name: NonEmpty
    arguments: str | dict[str, Any] | None = None
    """A JSON object, usually as a string."""

    def as_object(self, where: str) -> dict[str, Any]:
        """Gives the call with its arguments as an object, however the client spaced their JSON:
        templates then write all calls alike, as in training. Missing arguments become {}. Raises
        ApiError, which calls the function `where`."""
        where += ".arguments"
        given = self.arguments
        try:
            found = given if isinstance(given, dict) else read_json((given or "{}").encode())
        except ValueError as error:
            raise ApiError(400, f"{where} is not JSON: {error}", param=where) from None
        if not isinstance(found, dict):
            raise ApiError(400, f"{where} is not a JSON object", param=where)
        return {"name": self.name, "arguments": found}


class MessageToolCall(RequestPart):
    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall
    index: Annotated[Any, NoEffect("a streamed call's, sent back")] = None


class Message(RequestPart):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    """The speaker; developer counts as system, function as tool."""
    content: Content = None
    """A text, or a list of its pieces."""
    reasoning_content: str | None = None
    """The assistant's thoughts, which go into its thinking block."""
    reasoning: str | None = None
    """Another name for `reasoning_content`."""
    tool_calls: list[MessageToolCall] | None = None
    prefix: bool | None = None
    """True has a last message by the assistant continued."""
    name: Annotated[Any, NoEffect("chat templates have no place for it")] = None
    tool_call_id: str | None = None
    """Names the call that a tool's message answers. Results are put into the order of their
    calls."""
    refusal: Annotated[Any, NoEffect("an answer's, sent back")] = None
    annotations: Annotated[Any, NoEffect("an answer's, sent back")] = None
    function_call: FunctionCall | None = None
    """`tool_calls` in OpenAI's older form."""
    audio: Annotated[Any, Refused("the model reads text alone")] = None

    def as_turn(self, where: str) -> dict[str, Any]:
        """Gives the message as a turn for the chat template. Raises ApiError, which calls the
        message `where`."""
        turn: dict[str, Any] = {
            "role": _ROLES.get(self.role, self.role),
            "content": content_text(self.content),
        }
        thought = self.reasoning if self.reasoning_content is None else self.reasoning_content
        if thought is not None:
            turn["reasoning_content"] = thought
        calls = []
        for number, call in enumerate(self.tool_calls or ()):
            function = call.function.as_object(f"{where}.tool_calls[{number}].function")
            calls.append({**call.declared(), "function": function})
        if self.function_call is not None:
            function = self.function_call.as_object(f"{where}.function_call")
            calls.append({"type": "function", "function": function})
        if calls:
            turn["tool_calls"] = calls
        return turn


class Function(RequestPart):
    name: NonEmpty
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    """True: the arguments of a call must match `parameters`."""


class Tool(RequestPart):
    type: Annotated[Literal["function"], OthersRefused("only functions are called")] = "function"
    function: Function


def read_turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Converts messages to turns. Raises ApiError for a call's arguments that are not a JSON
    object."""
    turns: list[dict[str, Any]] = []
    order: dict[str | None, int] = {}
    for is_result, run in itertools.groupby(enumerate(messages), _is_result):
        found = list(run)
        if is_result and all(message.tool_call_id in order for _, message in found):
            found.sort(key=lambda one: order[one[1].tool_call_id])
        turns += [message.as_turn(f"messages[{number}]") for number, message in found]
        calls = found[-1][1].tool_calls or ()
        order = {call.id: place for place, call in enumerate(calls) if call.id is not None}
    return turns


def split_open_thought(turn: dict[str, Any]) -> dict[str, Any]:
    """Gives an assistant's turn that is to be continued; if its text ends inside the thinking
    block, the thought is moved to "reasoning_content"."""
    before, opened, thought = turn["content"].partition(THINK)
    if opened and not before.strip() and END_THINK not in thought:
        return {**turn, "content": "", "reasoning_content": thought.removeprefix("\n")}
    return turn


def _is_result(numbered: tuple[int, Message]) -> bool:
    return numbered[1].role in ("tool", "function")


def _tree(value: Any) -> Any:
    """Lists the declared fields at all levels, for `model_dump` to include."""
    if isinstance(value, RequestPart):
        return {name: _tree(getattr(value, name)) for name in type(value).model_fields}
    return True

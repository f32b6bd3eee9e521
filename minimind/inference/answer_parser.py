"""Splits a model's text, as it arrives, into reasoning, answer and tool calls."""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass

from minimind.inference.text_stream import possible_start

THINK, END_THINK = "<think>", "</think>"
_CALL, END_CALL = "<tool_call>", "</tool_call>"
_STRING_OR_END = re.compile(rf'"(?:[^"\\]|\\.)*(?:"|\\?\Z)|{END_CALL}', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Reasoning:
    text: str


@dataclass(frozen=True, slots=True)
class Content:
    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    id: str
    name: str
    arguments: str
    """A JSON object."""


Part = Reasoning | Content | ToolCall


class AnswerParser:
    """Splits text that arrives in pieces of any size; the parts of the whole do not depend on how
    it was cut.

    Thinking stands at the beginning, inside <think>; a call is a JSON object with a name and
    arguments inside <tool_call>, and a malformed call stays text. The line breaks between these
    blocks belong to none of them.
    """

    def __init__(
        self,
        *,
        in_reasoning: bool,
        with_tools: bool,
        calls_alone: bool = False,
        must_call: bool = False,
    ) -> None:
        """Starts a parser. With `in_reasoning` the prompt has opened the thinking block. Calls are
        recognised only `with_tools`, and with `calls_alone` not in an answer that begins with text.
        With `must_call` there is no text, so a call that was cut off is dropped."""
        self._state = "reasoning" if in_reasoning else "start"
        self._with_tools, self._calls_alone = with_tools, calls_alone
        self._must_call = must_call
        self._held = ""
        """Text that may still turn out to be a tag, or line breaks before one."""
        self._is_fresh = True
        """Whether no text of this block has been given out: line breaks are dropped until then."""

    def push(self, text: str) -> list[Part]:
        """Gives the parts that are certain now. The caller joins neighbouring parts of one kind."""
        self._held += text
        parts: list[Part] = []
        while self._step(parts):
            pass
        return parts

    def flush(self) -> list[Part]:
        """Gives the rest at the end; a call that was cut off is given as text."""
        parts = self._flush()
        return [part for part in parts if not (self._must_call and isinstance(part, Content))]

    def _flush(self) -> list[Part]:
        parts: list[Part] = []
        if self._state == "call":
            # One whose text never ends, or was cut off, has ended at its first tag.
            body, found, rest = self._held.partition(END_CALL)
            self._end_call(parts, body, closing=found)
            self._held = rest
            return [*parts, *self.push(""), *self._flush()] if found else parts
        elif self._state == "reasoning":
            self._give(parts, self._held.rstrip("\n"))
        else:
            self._state = "content"
            self._give(parts, self._held)
        self._held = ""
        return parts

    def _step(self, parts: list[Part]) -> bool:
        """Takes the certain part of the held text, and tells whether there may be more."""
        if self._state == "start":
            return self._find_beginning()
        if self._state == "call":
            end = _end_of_call(self._held)
            if end is not None:
                self._end_call(parts, self._held[:end], closing=END_CALL)
                self._held = self._held[end + len(END_CALL) :]
            return end is not None
        thinks = self._state == "reasoning"
        tag = END_THINK if thinks else _CALL
        start = self._held.lstrip("\n")
        if not thinks and self._calls_alone and start and not _CALL.startswith(start[: len(_CALL)]):
            self._with_tools = False
        before, found, rest = self._held.partition(tag)
        if found and (thinks or self._with_tools):
            self._give(parts, before.rstrip("\n"))
            self._held = rest
            self._is_fresh = True
            self._state = "content" if thinks else "call"
            return True
        safe = len(self._held)
        if thinks or self._with_tools:
            safe -= possible_start(self._held, [tag])
            safe = len(self._held[:safe].rstrip("\n"))
        self._give(parts, self._held[:safe])
        self._held = self._held[safe:]
        return False

    def _find_beginning(self) -> bool:
        text = self._held.lstrip()
        if text.startswith(THINK):
            self._held = text.removeprefix(THINK)
            self._state = "reasoning"
        elif text and not THINK.startswith(text):
            self._state = "content"
            self._is_fresh = False
        return self._state != "start"

    def _give(self, parts: list[Part], text: str) -> None:
        if self._is_fresh:
            text = text.lstrip("\n")
        if text:
            parts.append(Reasoning(text) if self._state == "reasoning" else Content(text))
            self._is_fresh = False

    def _end_call(self, parts: list[Part], body: str, closing: str) -> None:
        self._state = "content"
        call = _read_call(body)
        if call is not None:
            parts.append(call)
            self._is_fresh = True
        else:
            self._is_fresh = False
            self._give(parts, f"{_CALL}{body}{closing}")


def _end_of_call(text: str) -> int | None:
    """Finds the first closing tag outside JSON strings; where the text before it is not a call, the
    first closing tag of all."""
    for piece in _STRING_OR_END.finditer(text):
        if piece.group() == END_CALL:
            is_call = _read_call(text[: piece.start()]) is not None
            return piece.start() if is_call else text.index(END_CALL)
    return None


def _read_call(body: str) -> ToolCall | None:
    try:
        call = json.loads(body)
        name, arguments = call["name"], call.get("arguments", {})
        written = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        # Half a character, which JSON can spell, has no UTF-8 form.
        (written + name).encode()
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return None
    return ToolCall(f"call_{uuid.uuid4().hex[:24]}", name, written)


def opens_reasoning(prompt_tail: str) -> bool:
    """Tells whether a prompt with this end has opened a thinking block and not closed it."""
    return prompt_tail.rfind(THINK) > prompt_tail.rfind(END_THINK)

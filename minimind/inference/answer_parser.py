"""Splits a model's text, as it arrives, into reasoning, answer and tool calls."""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass

from minimind.config.tags import CALL, END_CALL, END_THINK, THINK
from minimind.inference.text_stream import possible_start

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
    """The arguments as the text of a JSON object."""


Part = Reasoning | Content | ToolCall


class AnswerParser:
    """Splits a text that arrives in pieces of any size; the parts do not depend on where it was
    cut.

    Thinking comes first, inside <think>. A tool call is a JSON object with a name and arguments
    inside <tool_call>; a malformed call stays text. Line breaks between these blocks are dropped.
    """

    def __init__(
        self,
        *,
        in_reasoning: bool,
        with_tools: bool,
        calls_alone: bool = False,
        must_call: bool = False,
    ) -> None:
        """Starts a parser. `in_reasoning`: the prompt has already opened the thinking block.
        `with_tools`: calls are recognised. `calls_alone`: not in an answer that begins with text.
        `must_call`: the answer has no text, so a call that was cut off is dropped."""
        self._state = "reasoning" if in_reasoning else "start"
        self._with_tools, self._calls_alone = with_tools, calls_alone
        self._must_call = must_call
        self._held = ""
        """Text that may still become a tag, or line breaks before one."""
        self._is_fresh = True
        """True until this block has given out text; line breaks are dropped until then."""

    def push(self, text: str) -> list[Part]:
        """Adds text, and gives the parts that are certain by now. Neighbouring parts of one kind
        are for the caller to join."""
        self._held += text
        parts: list[Part] = []
        while self._step(parts):
            pass
        return parts

    def flush(self) -> list[Part]:
        """Gives the rest when the text has ended. A call that was cut off becomes text."""
        parts = self._flush()
        return [part for part in parts if not (self._must_call and isinstance(part, Content))]

    def _flush(self) -> list[Part]:
        parts: list[Part] = []
        if self._state == "call":
            # A call that never ends, or was cut off, ends at the first closing tag in it.
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
        """Moves the certain part of the held text to `parts`; tells whether to call it again."""
        if self._state == "start":
            return self._find_beginning()
        if self._state == "call":
            end = _end_of_call(self._held)
            if end is not None:
                self._end_call(parts, self._held[:end], closing=END_CALL)
                self._held = self._held[end + len(END_CALL) :]
            return end is not None
        thinks = self._state == "reasoning"
        tag = END_THINK if thinks else CALL
        start = self._held.lstrip("\n")
        if not thinks and self._calls_alone and start and not CALL.startswith(start[: len(CALL)]):
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
            self._give(parts, f"{CALL}{body}{closing}")


def _end_of_call(text: str) -> int | None:
    """Gives the position of the first closing tag outside JSON strings; where the text before that
    is no call, of the very first closing tag. None without one."""
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
        # JSON can spell a lone surrogate, which has no UTF-8 form.
        (written + name).encode()
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return None
    return ToolCall(f"call_{uuid.uuid4().hex[:24]}", name, written)


def opens_reasoning(prompt_tail: str) -> bool:
    """Tells whether the prompt that ends in `prompt_tail` has opened a thinking block and not
    closed it."""
    return prompt_tail.rfind(THINK) > prompt_tail.rfind(END_THINK)

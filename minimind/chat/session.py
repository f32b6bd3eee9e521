"""Keeps a conversation, whether a model in this process or a server answers it."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, get_args, get_type_hints

from minimind.config.spelling import did_you_mean
from minimind.data.chat_encoding import Message
from minimind.errors import ConfigError
from minimind.inference.answer_parser import Content, Part, Reasoning, ToolCall
from minimind.inference.sampling import SamplingParams

_PROGRAMS = ("grammar", "logprobs", "tempered_logprobs")
"""Options of SamplingParams that only programs use, as are all options that are neither numbers nor
switches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions(SamplingParams):
    """Says how to answer: SamplingParams with defaults for a conversation, and whether the model
    thinks first."""

    thinking: bool = False
    max_new_tokens: int = 512
    temperature: float = 0.7
    top_p: float = 0.9

    def show(self) -> dict[str, Any]:
        """Gives the options that `change` takes, with their values."""
        return {name: getattr(self, name) for name in _CHANGEABLE}

    def change(self, assignment: str) -> ChatOptions:
        """Gives the options with one changed, by `name=value`. Raises ConfigError."""
        name, equals, text = (part.strip() for part in assignment.partition("="))
        if name not in _CHANGEABLE or not equals:
            guess = "" if name in _CHANGEABLE else did_you_mean(name, _CHANGEABLE)
            known = ", ".join(sorted(_CHANGEABLE))
            raise ConfigError(f"{assignment!r}{guess}: give NAME=VALUE with one of {known}")
        kind = get_type_hints(ChatOptions)[name]
        optional = type(None) in get_args(kind)
        if optional and text.lower() == "none":
            return dataclasses.replace(self, **{name: None})
        kind = get_args(kind)[0] if optional else kind
        try:
            value = {"on": True, "off": False}[text.lower()] if kind is bool else kind(text)
        except (ValueError, KeyError):
            wanted = {bool: "on or off", int: "a whole number", float: "a number"}[kind]
            raise ConfigError(f"{name} is {text!r}; it must be {wanted}") from None
        return dataclasses.replace(self, **{name: value})


_CHANGEABLE = tuple(
    field.name
    for field in dataclasses.fields(ChatOptions)
    if isinstance(field.default, bool | int | float | None) and field.name not in _PROGRAMS
)


@dataclass(frozen=True, slots=True)
class Finished:
    """Says how an answer ended, as the last item of its stream."""

    reason: str
    completion_tokens: int | None
    """None where a server does not count them."""


class ChatBackend(Protocol):
    """Answers the turns of a conversation."""

    def answer(
        self,
        messages: Sequence[Message],
        options: ChatOptions,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Iterator[Part | Finished]:
        """Yields the parts of the answer as they arrive, then a Finished. Closing the iterator
        stops the generation. Raises a MiniMindError where no answer can be given."""
        ...


@dataclass(slots=True)
class ChatSession:
    """Holds the turns of a conversation, the options for the next answer, and the times of the last
    one."""

    backend: ChatBackend
    options: ChatOptions = field(default_factory=ChatOptions)
    system: str = ""
    turns: list[Message] = field(default_factory=list)
    finished: Finished | None = None
    seconds: float = 0.0
    """The seconds from the question to the answer's last token."""
    first_token_s: float = 0.0

    @property
    def messages(self) -> list[Message]:
        return [{"role": "system", "content": self.system}, *self.turns][not self.system :]

    @property
    def tokens_per_s(self) -> float | None:
        """Gives the tokens per second of the last answer, counted from its first token; None where
        there is no second one, or no count."""
        made = self.finished.completion_tokens if self.finished else None
        writing_s = self.seconds - self.first_token_s
        return (made - 1) / writing_s if made and made > 1 and writing_s > 0 else None

    def ask(
        self, question: str | Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()
    ) -> Iterator[Part]:
        """Asks a question (a user's text, or turns such as tool results) and yields the parts of
        the answer. Question and answer are kept even if the answer is cut short, unless nothing
        arrived."""
        asked = [{"role": "user", "content": question}] if isinstance(question, str) else question
        self.finished = None
        started = time.perf_counter()
        parts: list[Part] = []
        stream = self.backend.answer([*self.messages, *asked], self.options, tools)
        try:
            for part in stream:
                if isinstance(part, Finished):
                    self.finished = part
                    continue
                if not parts:
                    self.first_token_s = time.perf_counter() - started
                parts.append(part)
                yield part
        finally:
            stream.close()  # type: ignore[attr-defined]
            self.seconds = time.perf_counter() - started
            if parts:
                self.turns += [*asked, answer_message(parts)]

    def forget_last(self) -> str | None:
        """Removes the last question and its answer, and gives the question; None if there was
        none."""
        while self.turns:
            turn = self.turns.pop()
            if turn["role"] == "user":
                return turn["content"]
        return None

    def save(self, path: Path) -> None:
        """Appends the conversation to a jsonl file, in the format of training data. Raises
        ConfigError."""
        line = json.dumps({"conversations": self.messages}, ensure_ascii=False)
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


def answer_message(parts: Sequence[Part]) -> Message:
    """Gives the assistant's turn that `parts` make, for the conversation's history."""
    message: Message = {
        "role": "assistant",
        "content": "".join(part.text for part in parts if isinstance(part, Content)),
    }
    if thought := "".join(part.text for part in parts if isinstance(part, Reasoning)):
        message["reasoning_content"] = thought
    calls = [part for part in parts if isinstance(part, ToolCall)]
    if calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in calls
        ]
    return message

"""Answers a conversation through a server with OpenAI's API, MiniMind's or another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import openai

from minimind.chat.session import ChatOptions, Finished
from minimind.data.chat_encoding import Message
from minimind.errors import ConfigError
from minimind.inference.answer_parser import Content, Part, Reasoning, ToolCall


class ServerChat:
    """Talks to the server through OpenAI's official client."""

    def __init__(self, url: str, model: str | None = None, api_key: str | None = None) -> None:
        """Connects to `url`, with or without /v1. Uses `model`, or the server's first model. Raises
        ConfigError where the server cannot be reached or has no such model."""
        base = url.rstrip("/").removesuffix("/v1") + "/v1"
        self._client = openai.OpenAI(base_url=base, api_key=api_key or "none", max_retries=0)
        with _clear_errors(base):
            cards = self._client.models.list().data
        self.models = [card.id for card in cards]
        if not self.models:
            raise ConfigError(f"{base} serves no model")
        if model is not None and model not in self.models:
            raise ConfigError(f"{base} has no model {model!r}; it has {', '.join(self.models)}")
        self.model = model or self.models[0]
        notices = {card.id: getattr(card, "notice", None) for card in cards}
        self.notice: str | None = notices[self.model]
        """Says what people should know of the model, as the server tells."""

    def answer(
        self,
        messages: Sequence[Message],
        options: ChatOptions,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Iterator[Part | Finished]:
        asked: dict[str, Any] = {
            "model": self.model,
            "messages": list(messages),
            "max_tokens": options.max_new_tokens,
            "temperature": options.temperature,
            "top_p": options.top_p,
            "presence_penalty": options.presence_penalty,
            "frequency_penalty": options.frequency_penalty,
            "extra_body": {
                "top_k": options.top_k,
                "min_p": options.min_p,
                "repetition_penalty": options.repetition_penalty,
                "chat_template_kwargs": {"enable_thinking": options.thinking},
            },
        }
        if options.seed is not None:
            asked["seed"] = options.seed
        if tools:
            asked["tools"] = list(tools)
        with _clear_errors(str(self._client.base_url)):
            stream = self._client.chat.completions.create(
                **asked, stream=True, stream_options={"include_usage": True}
            )
            with stream:
                yield from _read(stream)


def _read(stream: Any) -> Iterator[Part | Finished]:
    reason, tokens = "stop", None
    calls: dict[int, dict[str, str]] = {}
    for chunk in stream:
        if chunk.usage is not None:
            tokens = chunk.usage.completion_tokens
        for choice in chunk.choices:
            reason = choice.finish_reason or reason
            if thought := getattr(choice.delta, "reasoning_content", None):
                yield Reasoning(thought)
            if choice.delta.content:
                yield Content(choice.delta.content)
            for delta in choice.delta.tool_calls or ():
                # Other servers send a tool call in pieces.
                call = calls.setdefault(delta.index, {"id": "", "name": "", "arguments": ""})
                call["id"] += delta.id or ""
                call["name"] += delta.function.name or ""
                call["arguments"] += delta.function.arguments or ""
    for call in calls.values():
        yield ToolCall(call["id"], call["name"], call["arguments"])
    yield Finished(reason, tokens)


@contextmanager
def _clear_errors(url: str) -> Iterator[None]:
    """Turns the openai client's errors into ConfigErrors that carry the server's own message."""
    try:
        yield
    except openai.APIConnectionError as error:
        raise ConfigError(f"{url} cannot be reached: {error}") from None
    except openai.APIStatusError as error:
        body = error.body if isinstance(error.body, dict) else {}
        raise ConfigError(f"{url}: {body.get('message', error.message)}") from None
    except openai.APIError as error:
        raise ConfigError(f"{url}: {error.message}") from None

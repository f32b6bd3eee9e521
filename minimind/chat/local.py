"""Answers a conversation with a model in this process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from minimind.chat.session import ChatOptions, Finished
from minimind.data.chat_encoding import Chat, Message
from minimind.data.tokenizer import Tokenizer
from minimind.errors import ConfigError
from minimind.inference.answer_parser import AnswerParser, Part
from minimind.inference.batch_engine import BatchEngine
from minimind.inference.chat_prompt import chat_prompt
from minimind.inference.request import GenerationRequest
from minimind.model.transformer import Transformer


class LocalChat:
    """Answers one conversation at a time. The beginning that its turns share stays in the cache."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._engine = BatchEngine(model, tokenizer, max_batch=1)

    def answer(
        self,
        messages: Sequence[Message],
        options: ChatOptions,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Iterator[Part | Finished]:
        chat = Chat(list(messages), [dict(tool) for tool in tools] or None)
        prompt = chat_prompt(self._tokenizer, chat, options.thinking)
        room = self._engine.max_sequence - len(prompt.ids)
        if room < 1:
            raise ConfigError(
                f"the conversation has {len(prompt.ids)} tokens, the model's context only "
                f"{self._engine.max_sequence}: begin a new one"
            )
        params = replace(options, max_new_tokens=min(options.max_new_tokens, room))
        stop_ids = (self._tokenizer.eos_id, self._tokenizer.pad_id)
        request = GenerationRequest(prompt_ids=prompt.ids, params=params, stop_ids=stop_ids)
        parser = AnswerParser(in_reasoning=prompt.in_reasoning, with_tools=bool(tools))
        stream = self._engine.stream(request)
        try:
            for delta in stream:
                yield from parser.push(delta.text)
                if delta.finish_reason is not None:
                    yield from parser.flush()
                    yield Finished(delta.finish_reason, delta.completion_tokens)
        finally:
            stream.close()  # type: ignore[attr-defined]

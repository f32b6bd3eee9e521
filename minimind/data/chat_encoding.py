"""Encodes conversations as tokens, through the tokenizer's own chat template. Text in the data that
spells a special token stays text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from minimind.data.chat_losses import find_losses
from minimind.data.chat_template import render_chat
from minimind.data.tokenizer import TAGS, Tokenizer
from minimind.errors import DataError
from minimind.types import Sample

Message = dict[str, Any]

# Unicode keeps U+FDD0 and the next characters for a program's own use. `_SPELLED` is put before
# data that looks like an added token, `_LITERAL` stands for a U+FDD0 in the data.
_MARK = "\ufdd0"
_SPELLED = f"{_MARK}s"
_LITERAL = f"{_MARK}m"
_QUESTION, _ANSWER, _CUT = "\ufdd1", "\ufdd2", "\ufdd3"


@dataclass(frozen=True, slots=True)
class Chat:
    """Holds a conversation whose turns have been checked."""

    messages: list[Message]
    """The messages as a chat template takes them: role, content, and tool_calls as objects."""
    tools: list[dict[str, Any]] | None = None


Span = tuple[str, bool]
"""A part of a rendered conversation, and whether its tokens are targets."""


class ChatEncoder:
    """Renders and encodes conversations for one tokenizer.

    The ids are those of `transformers` for the same template, with two exceptions. Text from the
    data never becomes an added token, except the tags of thinking and tools in assistant turns. And
    line ends after an added token are encoded apart from the text that follows: a prompt ends with
    such line ends, and many tokenizers have a token for two line ends that they do not use before
    text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises DataError for a tokenizer without a chat template, and for a template that does
        not show where an assistant's turn begins."""
        if tokenizer.chat_template is None:
            raise DataError(
                f"the tokenizer {tokenizer.origin} has no chat template: give tokenizer_config.json"
                ' a "chat_template"'
            )
        self._template = tokenizer.chat_template
        self._tokenizer = tokenizer
        self._token = _any_of(tokenizer.added_ids)
        self._begins = {token[0] for token in tokenizer.added_ids} | {_MARK}
        self._token_but_tags = _any_of(set(tokenizer.added_ids) - set(TAGS))
        self._split = re.compile(f"(?<!{_SPELLED})({self._token})(\n*)")
        end_token = _any_of(t for t, id in tokenizer.added_ids.items() if id == tokenizer.eos_id)
        self._end_token = f"(?<!{_SPELLED}){end_token}"
        end = f"{self._end_token}\n?"
        header = self._find_header(end)
        self._turn = re.compile(f"(?<!{_SPELLED}){re.escape(header)}(.*?{end})", re.DOTALL)

    def _find_header(self, end: str) -> str:
        """Gives the text that the template writes between the end of a turn and the assistant's
        text. A thinking block counts as part of the assistant's text."""
        turns = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
        text = render_chat(self._template, turns, special_tokens=self._tokenizer.special_tokens)
        between = text.partition(_QUESTION)[2].partition(_ANSWER)[0]
        header = re.split(f"{end}|{_any_of(TAGS)}", between + TAGS[0])
        header = next((part for part in header if re.search(self._token, part)), None)
        if header is None:
            raise DataError(
                f"the chat template of {self._tokenizer.origin} begins an assistant's turn without "
                f"any added token ({between!r}): its targets cannot be told from other text"
            )
        return header

    def check_shown(self, chat: Chat, spans: Sequence[Span], unread: set[str]) -> None:
        """Checks that the rendered conversation contains every part of `chat`, since templates
        leave out parts they do not know. Adds reasoning that is left out to `unread`; raises
        DataError for any other omission."""
        text = "".join(text for text, _ in spans)
        if _MARK in text:
            text = text.replace(_SPELLED, "").replace(_LITERAL, _MARK)
        unread.update(find_losses(chat.messages, text, self._tokenizer.origin))
        if chat.tools and not self._shows_tools:
            raise DataError(
                f"the chat template of {self._tokenizer.origin} does not show tools, and the row "
                "has some: leave them out of the data, or use a tokenizer whose template does"
            )

    @cached_property
    def _shows_tools(self) -> bool:
        tool = {"name": _QUESTION, "description": "", "parameters": {}}
        turns = [{"role": "user", "content": "?"}]
        tools = [{"type": "function", "function": tool}]
        try:
            return _QUESTION in render_chat(self._template, turns, tools)
        except DataError:
            return False

    def spans(self, chat: Chat) -> list[Span]:
        """Renders a conversation. Its targets are the assistant turns, each from after its header
        to its end token inclusive. Raises DataError where the template refuses it."""
        text = self._render(chat)
        spans: list[Span] = []
        done = 0
        for match in self._turn.finditer(text):
            spans += [(text[done : match.start(1)], False), (match[1], True)]
            done = match.end()
        return [*spans, (text[done:], False)] if done < len(text) else spans

    def encode(self, conversations: Sequence[Sequence[Span]]) -> list[Sample]:
        """Encodes each conversation, on all cores. Tokens never span two spans, so a prompt that
        ends where an answer begins has the same ids."""
        plain: list[str] = []
        pieces: list[list[tuple[int | None, bool]]] = []
        for spans in conversations:
            pieces.append([])
            for text, is_target in spans:
                for number, part in enumerate(self._split.split(text)):
                    if number % 3 == 1:
                        pieces[-1].append((self._tokenizer.added_ids[part], is_target))
                    elif part:
                        plain.append(part.replace(_SPELLED, "").replace(_LITERAL, _MARK))
                        pieces[-1].append((None, is_target))
        encoded = iter(self._tokenizer.encode_batch(plain))
        samples = []
        for conversation in pieces:
            ids: list[int] = []
            targets: list[bool] = []
            for token, is_target in conversation:
                part_ids = next(encoded) if token is None else [token]
                ids += part_ids
                targets += [is_target] * len(part_ids)
            samples.append(
                Sample(ids=np.array(ids, dtype=np.int32), is_target=np.array(targets, dtype=bool))
            )
        return samples

    def prompt_ids(self, chat: Chat, enable_thinking: bool = False) -> list[int]:
        """Gives the ids of the conversation so far and the header of the assistant's next turn."""
        (sample,) = self.encode([self.prompt_spans(chat, enable_thinking)])
        return sample.ids.tolist()

    def prompt_spans(
        self,
        chat: Chat,
        enable_thinking: bool = False,
        *,
        opens_turn: bool = True,
        options: Mapping[str, Any] | None = None,
    ) -> list[Span]:
        """Gives the spans that `prompt_ids` encodes, without targets. Without `opens_turn` they end
        after the last turn. `options` are further variables of the template. Raises DataError where
        the template refuses the conversation."""
        text = self._render(
            chat, add_generation_prompt=opens_turn, enable_thinking=enable_thinking, options=options
        )
        return [(text, False)]

    def unfinished_spans(self, chat: Chat, options: Mapping[str, Any] | None) -> list[Span]:
        """Renders a conversation up to the last character of its last turn, which is to be
        continued (of its thoughts, where the turn has nothing else). Raises DataError."""
        *before, last = chat.messages
        thinks = bool(last.get("reasoning_content")) and not last["content"]
        key = "reasoning_content" if thinks else "content"
        marked = {**last, key: last[key] + _CUT}
        text = self._render(Chat([*before, marked], chat.tools), options=options)
        text, found, _ = text.rpartition(_CUT)
        if not found:
            raise DataError(
                f"the chat template of {self._tokenizer.origin} does not write the last turn as it "
                "is: it cannot be continued"
            )
        return [(text, False)]

    def result_ids(self, results: Sequence[str], enable_thinking: bool = False) -> list[int]:
        """Gives the ids that follow the end token of an assistant's turn which called tools: the
        results, and the header of the next turn. The policy's own text is not rendered again, so
        its tokens stay as they were sampled."""
        turns = [
            {"role": "user", "content": _QUESTION},
            {"role": "assistant", "content": _ANSWER},
            *({"role": "tool", "content": result} for result in results),
        ]
        ((text, _),) = self.prompt_spans(Chat(turns), enable_thinking)
        behind = text.partition(_ANSWER)[2]
        end = re.match(self._end_token, behind)
        if end is None:
            raise DataError(
                f"the chat template of {self._tokenizer.origin} does not end an assistant's turn "
                f"with its end token, but with {behind[:20]!r}: tools' results cannot follow it"
            )
        (sample,) = self.encode([[(behind[end.end() :], False)]])
        return sample.ids.tolist()

    def _render(self, chat: Chat, **options: Any) -> str:
        messages = [
            self._escape(message, keep_tags=message["role"] == "assistant")
            for message in chat.messages
        ]
        tools = None if chat.tools is None else self._escape(chat.tools, keep_tags=False)
        special_tokens = self._tokenizer.special_tokens
        return render_chat(
            self._template, messages, tools, special_tokens=special_tokens, **options
        )

    def _escape(self, value: Any, keep_tags: bool) -> Any:
        if isinstance(value, str):
            if not any(sign in value for sign in self._begins):
                return value
            token = self._token_but_tags if keep_tags else self._token
            return re.sub(f"(?={token})", _SPELLED, value.replace(_MARK, _LITERAL))
        if isinstance(value, list):
            return [self._escape(item, keep_tags) for item in value]
        if isinstance(value, dict):
            return {
                self._escape(key, keep_tags): self._escape(item, keep_tags)
                for key, item in value.items()
            }
        return value


def _any_of(texts: Iterable[str]) -> str:
    """Gives a pattern that matches any of the texts, the longest first, as added tokens are
    matched; one that matches nothing where there are none."""
    ordered = sorted(texts, key=len, reverse=True)
    return f"(?:{'|'.join(map(re.escape, ordered)) or '(?!)'})"

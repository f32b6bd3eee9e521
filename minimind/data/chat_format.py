"""Defines the chat format: conversations whose assistant turns are the targets."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from minimind.config.tags import END_THINK, THINK
from minimind.data.chat_encoding import Chat, ChatEncoder, Message, Span
from minimind.data.collate import collate
from minimind.data.formats import Format
from minimind.data.json_strings import parse_json, read_objects
from minimind.data.jsonl import BadRow, RowProblem, json_type, require_key
from minimind.data.text_format import check_characters, check_string
from minimind.data.tokenizer import Tokenizer
from minimind.data.turn_keys import OWN_ROLES
from minimind.errors import DataError
from minimind.types import PairSample, Row, Sample

SampleT = TypeVar("SampleT", Sample, PairSample)

SYSTEM_PROMPTS = (
    "You are MiniMind, a small and helpful assistant.",
    "Answer briefly and correctly.",
    "You are a friendly assistant. If you do not know something, say so.",
    "Help the user as well as you can.",
    "你是 MiniMind，一个乐于助人的小助手。",
    "请简短而准确地回答。",
    "你是一位友好的助手，不知道的事情就说不知道。",
    "请尽力帮助用户。",
)
"""The system prompts from which `system_prompt_ratio` draws."""
EMPTY_THINKING = f"{THINK}\n\n{END_THINK}\n\n"


def chat_samples(
    rows: Sequence[Row],
    tokenizer: Tokenizer,
    system_prompt_ratio: float = 0.0,
    empty_think_ratio: float = 1.0,
    seed: int = 0,
) -> list[Sample | BadRow]:
    """Tokenises `{"conversations": […]}` rows through the tokenizer's chat template.

    `system_prompt_ratio` is the share of conversations without a system turn that get one, and
    `empty_think_ratio` the share of empty thinking blocks that are kept. A row's changes depend
    only on `seed` and its line number.
    """

    def read(row: Row, encoder: ChatEncoder, unread: set[str]) -> list[list[Span]]:
        example = '{"conversations": [{"role": "user", "content": "…"}, …]}'
        require_key(row, "conversations", example)
        chat = read_conversation(row.data)
        dice = random.Random(f"{seed} {row.line}")
        chat = _with_system_prompt(chat, dice, system_prompt_ratio)
        spans = chat_spans(encoder, chat, unread)
        return [_without_empty_thinking(spans, dice, empty_think_ratio)]

    return encode_rows(rows, tokenizer, read, lambda row, documents: documents[0])


def encode_rows(
    rows: Sequence[Row],
    tokenizer: Tokenizer,
    read: Callable[[Row, ChatEncoder, set[str]], list[list[Span]]],
    build: Callable[[Row, list[Sample]], SampleT],
) -> list[SampleT | BadRow]:
    """Reads each row with `read`, which adds to a set what the template leaves out; encodes all
    conversations together, and gives for each row the result of `build`, or a BadRow where `read`
    raises RowProblem."""
    encoder = ChatEncoder(tokenizer)
    found: list[tuple[list[list[Span]], set[str]] | BadRow] = []
    for row in rows:
        unread: set[str] = set()
        try:
            found.append((read(row, encoder, unread), unread))
        except RowProblem as problem:
            found.append(BadRow.of(row, str(problem)))
    good = [spans for one in found if isinstance(one, tuple) for spans in one[0]]
    encoded = iter(encoder.encode(good))
    samples: list[SampleT | BadRow] = []
    for row, one in zip(rows, found, strict=True):
        if isinstance(one, BadRow):
            samples.append(one)
            continue
        chats, unread = one
        sample = build(row, [next(encoded) for _ in chats])
        samples.append(replace(sample, unread=tuple(sorted(unread))) if unread else sample)
    return samples


def read_conversation(
    data: dict[str, Any], key: str = "conversations", needs_answer: bool = True
) -> Chat:
    """Reads the turns under `key`, with the "system" and "tools" of the row. Raises RowProblem,
    also where the turns have other ones."""
    chat = read_chat(data[key], f'"{key}"', needs_answer)
    messages, tools = chat.messages, chat.tools
    if system := data.get("system"):
        check_string(system, '"system"')
        is_there = messages[0]["role"] == "system"
        if is_there and messages[0]["content"] not in ("", system):
            raise RowProblem('"system" of the row and its system turn differ: keep one of them')
        messages = [{"role": "system", "content": system}, *messages[is_there:]]
    if given := read_objects(data.get("tools") or [], '"tools"'):
        if tools not in (None, given):
            raise RowProblem('"tools" of the row and those of a turn differ: keep one of them')
        tools = given
    return Chat(messages, tools)


def chat_spans(encoder: ChatEncoder, chat: Chat, unread: set[str]) -> list[Span]:
    """Renders a conversation with its targets. Raises RowProblem where the template refuses it,
    leaves out a part that changes its meaning or shows no assistant turn, and where there is no
    target."""
    spans = checked_spans(encoder, chat, encoder.spans, unread)
    if not any(is_target for _, is_target in spans):
        raise RowProblem("the chat template shows no assistant turn of this conversation")
    weights = [m.get("weight", 1) for m in chat.messages if m["role"] == "assistant"]
    return _weighted(spans, weights) if 0 in weights else spans


def checked_spans(
    encoder: ChatEncoder, chat: Chat, render: Callable[[Chat], list[Span]], unread: set[str]
) -> list[Span]:
    """Gives the spans that `render` makes. Raises RowProblem where the template refuses the
    conversation or leaves out a part that changes its meaning, and for a lone surrogate."""
    try:
        spans = render(chat)
        encoder.check_shown(chat, spans, unread)
    except DataError as error:
        raise RowProblem(str(error)) from None
    check_characters("".join(text for text, _ in spans), "the conversation")
    return spans


def _weighted(spans: list[Span], weights: Sequence[int]) -> list[Span]:
    if sum(is_target for _, is_target in spans) != len(weights):
        raise RowProblem(
            "the chat template does not show each assistant turn apart: which of them have the "
            "weight 0 cannot be told"
        )
    if not any(weights):
        raise RowProblem("every assistant turn has the weight 0: there is nothing to learn from it")
    left = iter(weights)
    return [(text, is_target and bool(next(left))) for text, is_target in spans]


def read_chat(turns: object, what: str, needs_answer: bool = True) -> Chat:
    """Checks turns and parses the JSON strings in them. With `needs_answer` there must be an
    assistant turn, and none may be empty. Raises RowProblem, which calls the turns `what`."""
    if not isinstance(turns, list):
        raise RowProblem(f"{what} is {json_type(turns)} where a list of turns is expected")
    if not turns:
        raise RowProblem(f"{what} is empty; it needs a user turn and an assistant turn")
    messages = []
    tools = None
    for number, turn in enumerate(turns, start=1):
        message = _read_turn(turn, f"turn {number} of {what}", needs_answer)
        if given := message.pop("tools", None):
            if tools is not None:
                raise RowProblem(f'turn {number} of {what} has "tools", and an earlier turn too')
            tools = given
        messages.append(message)
    if needs_answer and all(message["role"] != "assistant" for message in messages):
        raise RowProblem(f"{what} has no assistant turn: there is nothing to learn from it")
    return Chat(messages, tools)


def _read_turn(turn: object, where: str, needs_answer: bool) -> Message:
    if not isinstance(turn, dict):
        raise RowProblem(f"{where} is {json_type(turn)} where an object is expected")
    role = turn.get("role")
    if role not in OWN_ROLES:
        given = json.dumps(role, ensure_ascii=False)[:60] if "role" in turn else "missing"
        raise RowProblem(f"{where}: the role is {given}; it must be one of {', '.join(OWN_ROLES)}")
    where = f"{where} ({role})"
    message = {key: value for key, value in turn.items() if value is not None}
    for key in ("tools", "tool_calls"):
        if key in message:
            message[key] = read_objects(message[key], f'{where}: "{key}"')
            if not message[key]:
                del message[key]
    for number, call in enumerate(message.get("tool_calls", ()), start=1):
        _check_call(call, f"{where}: tool call {number}")
    if "reasoning_content" in message and not isinstance(message["reasoning_content"], str):
        kind = json_type(message["reasoning_content"])
        raise RowProblem(f'{where}: "reasoning_content" is {kind} where a string is expected')
    may_be_empty = role in ("system", "tool") or (
        role == "assistant" and ("tool_calls" in message or not needs_answer)
    )
    content = message.setdefault("content", "")
    if may_be_empty and isinstance(content, str) and not content.strip():
        return message
    if "content" not in turn:
        raise RowProblem(f'{where} has no "content"')
    check_string(turn["content"], f'{where}: "content"')
    return message


def _check_call(call: dict[str, Any], where: str) -> None:
    function = call.get("function", call)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowProblem(f'{where} has no "name"')
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = parse_json(arguments, f'{where}: "arguments"')
    if not isinstance(arguments, dict):
        kind = json_type(arguments)
        raise RowProblem(f'{where}: "arguments" is {kind} where an object is expected')


def _with_system_prompt(chat: Chat, dice: random.Random, ratio: float) -> Chat:
    if chat.tools or any(message["role"] == "system" for message in chat.messages):
        return chat
    if dice.random() >= ratio:
        return chat
    prompt = SYSTEM_PROMPTS[int(dice.random() * len(SYSTEM_PROMPTS))]
    return Chat([{"role": "system", "content": prompt}, *chat.messages])


def _without_empty_thinking(spans: list[Span], dice: random.Random, ratio: float) -> list[Span]:
    return [
        (text.removeprefix(EMPTY_THINKING), True)
        if is_target and text.startswith(EMPTY_THINKING) and dice.random() >= ratio
        else (text, is_target)
        for text, is_target in spans
    ]


CHAT = Format(
    name="chat", version="3", all_targets=False, split_long=False, read=chat_samples,
    collate=collate,
)  # fmt: skip

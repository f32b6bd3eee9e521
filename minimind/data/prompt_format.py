"""Defines the prompt format: conversations that a model is asked to continue, and the data that its
answer is checked against."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from minimind.data.chat_encoding import Chat, ChatEncoder, Message, Span
from minimind.data.chat_format import checked_spans, encode_rows, read_conversation
from minimind.data.collate import collate_units
from minimind.data.formats import TEXT_COLUMN, Format
from minimind.data.json_strings import check_json
from minimind.data.jsonl import BadRow, RowProblem, require_key
from minimind.data.tokenizer import Tokenizer
from minimind.types import PackedRow, Row, Sample, UnitBatch

_RIGHT_ANSWERS = {"gt", "answer", "solution", "ground_truth"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """Holds one prompt of a batch."""

    ids: tuple[int, ...]
    """The ids up to and including the header of the assistant's turn that is to be written."""
    unit: int
    """The prompt's number within the epoch."""
    row: dict[str, Any]
    """The whole row of the data file."""
    place: int
    """The prompt's place among the batch's P places."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptBatch(UnitBatch):
    """Holds prompts, each in a row of its own, without targets. Its `count` is the number of
    prompts."""

    prompts: tuple[Prompt, ...]
    """The prompts, which stay on the CPU; rows of padding have none."""


def prompt_samples(
    rows: Sequence[Row], tokenizer: Tokenizer, thinking: bool = False
) -> list[Sample | BadRow]:
    """Tokenises `{"conversations": [turns], "gt" or "answer": any JSON}` rows, whose last assistant
    turn is empty or missing. The assistant's turn opens with a thinking block if `thinking`, else
    with an empty one."""

    def read(row: Row, encoder: ChatEncoder, unread: set[str]) -> list[list[Span]]:
        def render(chat: Chat) -> list[Span]:
            return encoder.prompt_spans(chat, thinking)

        return [checked_spans(encoder, read_prompt(row), render, unread)]

    def build(row: Row, prompts: list[Sample]) -> Sample:
        return replace(
            prompts[0], meta={"row": json.dumps(row.data, ensure_ascii=False, default=str)}
        )

    return encode_rows(rows, tokenizer, read, build)


def read_prompt(row: Row) -> Chat:
    """Gives the turns of a row's prompt, without an empty last one. Raises RowProblem."""
    example = '{"conversations": [{"role": "user", "content": "…"}], "gt": …}'
    require_key(row, "conversations", example)
    if "gt" in row.data and "answer" in row.data and row.data["gt"] != row.data["answer"]:
        raise RowProblem(
            '"gt" and "answer" differ: both name the right answer, so give one of them'
        )
    for key in _RIGHT_ANSWERS & row.data.keys():
        check_json(row.data[key], f'"{key}"')
    chat = read_conversation(row.data, needs_answer=False)
    messages = chat.messages
    if messages[-1]["role"] == "assistant":
        if not _is_empty(messages[-1]):
            raise RowProblem(
                'the last turn of "conversations" is an answer already: leave it empty or out, '
                'and give the right answer, if it is to be checked, as "gt"'
            )
        messages = messages[:-1]
    for number, message in enumerate(messages, start=1):
        if message["role"] == "assistant" and _is_empty(message):
            raise RowProblem(
                f'turn {number} of "conversations" (assistant) is empty; only the last may be'
            )
    last = messages[-1]["role"] if messages else None
    if last not in ("user", "tool"):
        ends = f"ends in a turn of the {last}" if last else "holds no turn but the empty one"
        raise RowProblem(
            f'"conversations" {ends}: a prompt ends in a turn of the user or a tool, which the '
            "assistant answers"
        )
    return Chat(messages, chat.tools)


def _is_empty(message: Message) -> bool:
    parts = [message["content"], message.get("reasoning_content", "")]
    return not ("tool_calls" in message or any(part.strip() for part in parts))


def collate_prompts(rows: Sequence[PackedRow], units_per_row: int) -> PromptBatch:
    """Joins rows into a batch, and keeps their prompts in the form that generation takes."""
    assert units_per_row == 1, "each prompt has a row of its own"
    batch = collate_units(rows, units_per_row, needs_targets=False)
    prompts = [
        Prompt(
            ids=tuple(row.ids_T[row.doc_T >= 0].tolist()),
            unit=int(row.units_U[0]),
            row=json.loads(row.meta["row"][0]),
            place=place,
        )
        for place, row in enumerate(rows)
        if len(row.units_U)
    ]
    return batch.extend(PromptBatch, prompts=tuple(prompts))


PROMPT = Format(
    name="prompt",
    version="2",
    all_targets=False,
    split_long=False,
    read=prompt_samples,
    collate=collate_prompts,
    packed=False,
    columns={"row": TEXT_COLUMN},
)

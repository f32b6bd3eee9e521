"""Defines the unpaired format: an answer to a conversation, and whether it is a good one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from minimind.data.chat_encoding import ChatEncoder, Span
from minimind.data.chat_format import chat_spans, encode_rows, read_conversation
from minimind.data.collate import collate_units
from minimind.data.formats import Format
from minimind.data.jsonl import BadRow, RowProblem, json_type, require_key
from minimind.data.packing import build_row
from minimind.data.tokenizer import Tokenizer
from minimind.types import IGNORE_INDEX, PackedRow, Row, Sample, UnitBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpairedBatch(UnitBatch):
    """Holds answers, and the same prompts paired with one another's answers.

    `meta["label"]` is bool [P]: whether the answer in each place is a good one.
    """

    mismatched: UnitBatch
    """The same prompts in the same places, each with the answer to another prompt of its row. A
    place is free where the row has no other answer."""


def unpaired_samples(rows: Sequence[Row], tokenizer: Tokenizer) -> list[Sample | BadRow]:
    """Tokenises `{"conversations": [turns], "label": true or false}` rows. The label judges the
    last assistant turn, which alone is a target."""
    return encode_rows(
        rows,
        tokenizer,
        _read_answer,
        lambda row, answers: replace(answers[0], meta={"label": row.data["label"]}),
    )


def _read_answer(row: Row, encoder: ChatEncoder, unread: set[str]) -> list[list[Span]]:
    for key in ("conversations", "label"):
        require_key(row, key, '{"conversations": [turns], "label": true}')
    label = row.data["label"]
    if not isinstance(label, bool):
        raise RowProblem(
            f'"label" is {json_type(label)} where true or false is expected: write true for an '
            "answer that was a good one, false for a bad one, without quotes"
        )
    chat = read_conversation(row.data)
    if chat.messages[-1]["role"] != "assistant":
        raise RowProblem(
            f'the last turn of "conversations" is of the {chat.messages[-1]["role"]}: a label is '
            "about the assistant's answer, which must come last"
        )
    if chat.messages[-1].get("weight") == 0:
        raise RowProblem(
            "the last answer has the weight 0, and a label: it is the one to learn from"
        )
    spans = chat_spans(encoder, chat, unread)
    last = max(place for place, (_, is_target) in enumerate(spans) if is_target)
    return [[(text, place == last) for place, (text, _) in enumerate(spans)]]


def collate_unpaired(rows: Sequence[PackedRow], units_per_row: int) -> UnpairedBatch:
    """Joins rows into a batch, and also their prompts with one another's answers. The answers only
    change places within a row, so the row's number of tokens stays the same."""
    batch = collate_units(rows, units_per_row)
    mismatched = collate_units([_mismatch(row) for row in rows], units_per_row)
    return batch.extend(UnpairedBatch, mismatched=mismatched)


def _mismatch(row: PackedRow) -> PackedRow:
    """Moves each answer of a row to another prompt, all by the same number of documents: the number
    that gives most prompts an answer other than their own. A prompt whose answer stays the same,
    because a mixture repeats it, gets no target."""
    is_target_T = np.append(False, row.labels_T[:-1] != IGNORE_INDEX)
    documents, answered = [], []
    for number in range(len(row.units_U)):
        (places,) = np.nonzero(row.doc_T == number)
        ids, is_target = row.ids_T[places], is_target_T[places]
        documents.append((ids, np.zeros_like(is_target)))
        if is_target.any():  # else its end, with the answer, was cut off
            at = int(is_target.argmax())
            answered.append((number, ids[:at], ids[at:], is_target[at:]))
    texts = [answer.tobytes() for _, _, answer, _ in answered]
    by = _best_shift(texts)
    for place, (number, prompt, _, _) in enumerate(answered):
        _, _, answer, is_answer = answered[place - by]
        nothing = np.zeros(len(prompt), dtype=bool)
        is_target = is_answer if texts[place] != texts[place - by] else np.zeros_like(is_answer)
        documents[number] = (
            np.concatenate([prompt, answer]),
            np.concatenate([nothing, is_target]),
        )
    pad_id = int(row.ids_T[-1])  # where there is no padding it is not asked for
    return build_row(documents, len(row.ids_T), pad_id, row.units_U.tolist())


def _best_shift(texts: Sequence[bytes]) -> int:
    """Gives the smallest shift that puts a different text in most places: 1, unless texts
    repeat."""
    best, most = 0, 0
    for by in range(1, len(texts)):
        others = sum(text != texts[place - by] for place, text in enumerate(texts))
        if others > most:
            best, most = by, others
        if most == len(texts):
            break
    return best


UNPAIRED = Format(
    name="unpaired",
    version="3",
    all_targets=False,
    split_long=False,
    read=unpaired_samples,
    collate=collate_unpaired,
    columns={"label": "bool"},
)

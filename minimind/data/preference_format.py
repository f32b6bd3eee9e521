"""Defines the preference format: a better and a worse answer to one conversation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from minimind.data.chat_encoding import Chat, ChatEncoder, Span
from minimind.data.chat_format import chat_spans, encode_rows, read_conversation
from minimind.data.collate import collate_units
from minimind.data.formats import Format
from minimind.data.jsonl import BadRow, RowProblem, require_key
from minimind.data.tokenizer import Tokenizer
from minimind.types import PairSample, Row

_SIDES = ("chosen", "rejected")


def preference_samples(rows: Sequence[Row], tokenizer: Tokenizer) -> list[PairSample | BadRow]:
    """Tokenises `{"chosen": [turns], "rejected": [turns]}` rows, each side as in the chat
    format."""
    return encode_rows(
        rows,
        tokenizer,
        _read_sides,
        lambda row, sides: PairSample(chosen=sides[0], rejected=sides[1]),
    )


def _read_sides(row: Row, encoder: ChatEncoder, unread: set[str]) -> list[list[Span]]:
    for side in _SIDES:
        require_key(row, side, '{"chosen": [turns], "rejected": [turns]}')
    chats = [read_conversation(row.data, side) for side in _SIDES]
    sides = [chat_spans(encoder, chat, unread) for chat in chats]
    if sides[0] == sides[1]:
        raise RowProblem('"chosen" and "rejected" are the same: there is no preference to learn')
    _check_one_prompt(*chats)
    return sides


def _check_one_prompt(chosen: Chat, rejected: Chat) -> None:
    """Raises RowProblem where the two sides differ before an answer."""
    if chosen.tools != rejected.tools:
        raise RowProblem('"chosen" and "rejected" have other tools: a pair answers one prompt')
    for number, turns in enumerate(zip(chosen.messages, rejected.messages, strict=False), start=1):
        if turns[0] != turns[1]:
            roles = {turn["role"] for turn in turns}
            if roles != {"assistant"}:
                raise RowProblem(
                    f'"chosen" and "rejected" part at turn {number} ({" and ".join(sorted(roles))})'
                    ": a pair is two answers to one prompt"
                )
            return


PREFERENCE = Format(
    name="preference",
    version="3",
    all_targets=False,
    split_long=False,
    read=preference_samples,
    collate=partial(collate_units, documents_per_unit=2),
    documents_per_unit=2,
)

"""Reads conversations in the forms of two widely used data sets, Firefly's and xLAM's."""

from __future__ import annotations

from minimind.data.chat_dialects import TOOL_KEYS, build_keys, read_shared
from minimind.data.dialects import Data, Dialect, has_turns
from minimind.data.jsonl import RowProblem
from minimind.data.row_refusals import CHAT_REFUSED
from minimind.data.turns import read_turns

_SPEAKERS = {"human": "user", "assistant": "assistant"}


def _read_pairs(data: Data, unread: set[str]) -> Data:
    turns = []
    for number, pair in enumerate(data["conversation"], start=1):
        if not isinstance(pair, dict) or list(pair) != list(_SPEAKERS):
            raise RowProblem(f'"conversation" {number} is no {{"human": "…", "assistant": "…"}}')
        turns += [{"role": role, "content": pair[key]} for key, role in _SPEAKERS.items()]
    return {"conversations": turns}


def _read_calls(data: Data, unread: set[str]) -> Data:
    turns = [
        {"role": "user", "content": data["query"]},
        {"role": "assistant", "content": "", "tool_calls": data["answers"]},
    ]
    return {**read_shared(data), "conversations": read_turns(turns, "the row", unread)}


DATASET_DIALECTS = (
    Dialect(
        name="firefly",
        title="Firefly's pairs",
        example='{"conversation": [{"human": "…", "assistant": "…"}, …]}',
        keys=build_keys({"conversation": "the questions and answers"}, refused=CHAT_REFUSED),
        matches=lambda data: has_turns(data.get("conversation"), "human"),
        convert=_read_pairs,
    ),
    Dialect(
        name="xlam",
        title="xLAM's query and calls",
        example='{"query": "…", "answers": [{"name": "…", "arguments": {…}}], "tools": [{…}]}',
        keys=build_keys(
            {"query": "the user's question", "answers": "the calls; JSON or a string of JSON"},
            TOOL_KEYS,
            refused=CHAT_REFUSED,
        ),
        matches=lambda data: "query" in data and "answers" in data and "tools" in data,
        convert=_read_calls,
    ),
)

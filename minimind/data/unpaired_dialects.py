"""Answers with a label in the forms of OpenAI, ShareGPT, Alpaca and TRL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minimind.data.chat_dialects import (
    ALPACA_KEYS,
    ANSWER_KEYS,
    CHAT_REFUSED,
    COMPLETION_KEYS,
    build_keys,
    build_list_dialects,
    is_alpaca,
    is_completion,
    read_alpaca,
    read_completion,
)
from minimind.data.dialects import Data, Dialect
from minimind.data.row_keys import choose

_LABELS = {"label": "whether the last answer is a good one", "kto_tag": "the same"}
_REFUSED = {key: why for key, why in CHAT_REFUSED.items() if key not in _LABELS}


def _with_label(data: Data, read: Data) -> Data:
    if not _is_labelled(data):
        return read  # the format says so
    return {**read, "label": choose(data, tuple(_LABELS))}


def _is_labelled(data: Mapping[str, Any]) -> bool:
    return any(key in data for key in _LABELS)


UNPAIRED_DIALECTS = (
    *build_list_dialects(_with_label, _LABELS, _REFUSED, tail=', "label": true'),
    Dialect(
        name="alpaca",
        title="Alpaca with a label",
        example='{"instruction": "…", "input": "…", "output": "…", "label": true}',
        keys=build_keys(ALPACA_KEYS, ANSWER_KEYS, _LABELS, refused=_REFUSED),
        matches=lambda data: is_alpaca(data) and _is_labelled(data),
        convert=lambda data, unread: _with_label(data, read_alpaca(data, unread)),
    ),
    Dialect(
        name="trl",
        title="TRL's prompt, completion and label",
        example='{"prompt": "…" or [turns], "completion": "…" or [turns], "label": true}',
        keys=build_keys(COMPLETION_KEYS, _LABELS, refused=_REFUSED),
        matches=is_completion,
        convert=lambda data, unread: _with_label(data, read_completion(data, unread)),
    ),
)

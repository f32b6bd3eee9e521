"""Reads answers with a label in the forms of OpenAI, ShareGPT, Alpaca and TRL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minimind.data.chat_dialects import build_answer_dialects, build_list_dialects
from minimind.data.dialects import Data
from minimind.data.row_keys import choose
from minimind.data.row_refusals import CHAT_REFUSED

_LABELS = {"label": "whether the last answer is a good one", "kto_tag": "the same"}
_REFUSED = {key: why for key, why in CHAT_REFUSED.items() if key not in _LABELS}


def _with_label(data: Data, read: Data) -> Data:
    if not _is_labelled(data):
        return read  # the format reports the missing label
    return {**read, "label": choose(data, tuple(_LABELS))}


def _is_labelled(data: Mapping[str, Any]) -> bool:
    return any(key in data for key in _LABELS)


UNPAIRED_DIALECTS = (
    *build_list_dialects(_with_label, _LABELS, _REFUSED, tail=', "label": true'),
    *build_answer_dialects(
        _with_label,
        _LABELS,
        _REFUSED,
        titles=("Alpaca with a label", "TRL's prompt, completion and label"),
        is_answered=_is_labelled,
        tail=', "label": true',
    ),
)

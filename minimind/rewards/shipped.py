"""Defines the rewards that come with MiniMind, which judge by rules alone. None raises for a
strange answer or row; an argument that makes no sense raises ConfigError."""

from __future__ import annotations

import itertools
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal

from minimind.config.tags import CALL, END_CALL, END_THINK, THINK
from minimind.errors import ConfigError
from minimind.rewards.rollout import Rollout
from minimind.rewards.tagged_text import read_calls, split_thought

SHIPPED = {
    "exact_match": "minimind.rewards.shipped:exact_match",
    "length_window": "minimind.rewards.shipped:length_window",
    "thinking_format": "minimind.rewards.shipped:thinking_format",
    "tool_call_format": "minimind.rewards.shipped:tool_call_format",
    "tool_used": "minimind.rewards.shipped:tool_used",
    "repetition_penalty": "minimind.rewards.shipped:repetition_penalty",
    "reward_model": "minimind.interop.reward_model:reward_model",
}
"""The shipped rewards' functions by short name."""

_HALF_WIDTH = str.maketrans("０１２３４５６７８９．＋－−", "0123456789.+--")
_NUMBER = re.compile(
    # A sign right after a digit, letter or bracket is a minus between two numbers, or a dash.
    r"(?:(?<![\w)\]])[-+])?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d+(?!\w))?"
)
_CHINESE = r"\u3400-\u4dbf\u4e00-\u9fff\u3040-\u30ff\uf900-\ufaff"
_WORD = re.compile(rf"[{_CHINESE}]|[^\W{_CHINESE}]+")


def exact_match(rollout: Rollout, part: Literal["answer", "number"] | None = None) -> float:
    """Gives 1.0 where the answer equals `gt`, or any of its items where `gt` is a list; else 0.0.

    part="answer" compares whole texts and ignores case, extra spaces, full-width forms and a full
    stop or exclamation mark at the end. part="number" compares the last number in the answer with
    the last one in `gt`: "It is 15." matches 15. By default a `gt` that is a number is compared as
    a number, and a text as a whole.
    """
    if part not in (None, "answer", "number"):
        raise ConfigError(f"part={part!r}: it must be 'answer' or 'number'")
    wanted = rollout.gt if isinstance(rollout.gt, (list, tuple)) else [rollout.gt]

    def is_same(one: Any) -> bool:
        is_number = isinstance(one, int | float) and not isinstance(one, bool)
        by_number = is_number if part is None else part == "number"
        return (_same_number if by_number else _same_text)(rollout.answer, one)

    return float(any(map(is_same, wanted)))


def length_window(
    rollout: Rollout,
    least: float = 5,
    most: float = 800,
    unit: Literal["tokens", "characters"] = "tokens",
) -> float:
    """Gives 1.0 where the length is from `least` to `most` inclusive; else 0.0. The unit "tokens"
    counts all that the policy generated, thought and calls included; "characters" counts the answer
    alone."""
    if unit not in ("tokens", "characters"):
        raise ConfigError(f"unit={unit!r}: it must be 'tokens' or 'characters'")
    if not least <= most:
        raise ConfigError(f"least={least} is more than most={most}: no length is in between")
    length = rollout.num_tokens if unit == "tokens" else len(rollout.answer)
    return float(least <= length <= most)


def thinking_format(rollout: Rollout, least: int = 1) -> float:
    """Gives 1.0 where the completion is exactly one closed <think> block, whose thought has at
    least `least` characters and no tag of a tool call, followed by an answer or a call; else
    0.0."""
    thought, rest = split_thought(rollout.completion)
    if thought is None or len(thought.strip()) < least or not rest.strip():
        return 0.0
    counts = [rollout.completion.count(tag) for tag in (THINK, END_THINK)]
    if counts != [1, 1] or not rollout.completion.lstrip().startswith(THINK):
        return 0.0
    return float(CALL not in thought and END_CALL not in thought)


def tool_call_format(rollout: Rollout) -> float:
    """Gives 1.0 where the assistant's turns have at least one <tool_call> block and each is a JSON
    object with a "name" and an object as "arguments"; else 0.0. Where the row lists tools, each
    name must be one of them."""
    known = _known_tools(rollout)
    calls = [call for text in _assistant_texts(rollout) for call in read_calls(text)]
    if not calls:
        return 0.0
    return float(all(call and (known is None or call["name"] in known) for call in calls))


def tool_used(rollout: Rollout) -> float:
    """Gives 1.0 where a tool answered a well-formed call: a tool's turn follows an assistant turn
    that has one; else 0.0."""
    turns = [turn for turn in rollout.turns if isinstance(turn, dict)]
    for turn, following in itertools.pairwise(turns):
        if turn.get("role") != "assistant" or following.get("role") != "tool":
            continue
        if any(read_calls(_text(turn.get("content")))):
            return 1.0
    return 0.0


def repetition_penalty(rollout: Rollout, ngram: int = 3, most: float = 1.0) -> float:
    """Gives minus the share of repeated n-grams in the completion, at least -`most`. An n-gram is
    `ngram` consecutive words; a Chinese character counts as a word, punctuation does not."""
    if ngram < 1 or not most >= 0:
        raise ConfigError(f"ngram={ngram}, most={most}: ngram must be at least 1, and most 0")
    words = _WORD.findall(rollout.completion.casefold())
    total = len(words) - ngram + 1
    if total < 1:
        return 0.0
    distinct = len(Counter(zip(*(words[start:] for start in range(ngram)), strict=False)))
    return 0.0 - min(most, (total - distinct) / total)


def _same_text(answer: str, wanted: Any) -> bool:
    if isinstance(wanted, (int, float)) and not isinstance(wanted, bool):
        whole = _plain(answer)
        return bool(_NUMBER.fullmatch(whole)) and _same_number(whole, wanted)
    if not isinstance(wanted, (str, bool)):
        return False
    return bool(_plain(str(wanted))) and _plain(answer) == _plain(str(wanted))


def _same_number(answer: str, wanted: Any) -> bool:
    found, right = _last_number(answer), _number(wanted)
    if found is None or right is None:
        return False
    return math.isclose(found, right, rel_tol=1e-9)


def _number(wanted: Any) -> float | None:
    if isinstance(wanted, str):
        return _last_number(wanted)
    if not isinstance(wanted, (int, float)) or isinstance(wanted, bool):
        return None
    try:
        return float(wanted) if math.isfinite(wanted) else None
    except OverflowError:
        return None


def _last_number(text: str) -> float | None:
    found = _NUMBER.findall(text.translate(_HALF_WIDTH))
    if not found:
        return None
    number = float(found[-1].replace(",", ""))
    return number if math.isfinite(number) else None


def _plain(text: str) -> str:
    words = unicodedata.normalize("NFKC", text).casefold().split()
    return " ".join(words).rstrip(".。!！ ")


def _assistant_texts(rollout: Rollout) -> list[str]:
    turns = [turn for turn in rollout.turns if isinstance(turn, dict)]
    return [_text(turn.get("content")) for turn in turns if turn.get("role") == "assistant"]


def _text(content: Any) -> str:
    return content if isinstance(content, str) else ""


def _known_tools(rollout: Rollout) -> set[str] | None:
    """Gives the names of the tools listed in the row or in a turn of the prompt; None where none
    are listed."""
    turns: list[Any] = [rollout.row, *rollout.messages]
    turns += [turn for value in rollout.row.values() if isinstance(value, list) for turn in value]
    lists = [turn.get("tools") for turn in turns if isinstance(turn, dict)]
    names = {name for tools in lists if tools for name in _tool_names(tools)}
    return names or None


def _tool_names(tools: Any) -> Iterable[str]:
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            return
    for tool in tools if isinstance(tools, list) else ():
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if isinstance(name, str):
            yield name

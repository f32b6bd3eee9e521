"""Calls tools while a policy is trained: Python functions, by name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from minimind.config.spelling import did_you_mean
from minimind.runtime.function_pool import Call, FunctionPool

SHIPPED = {
    "calculator": "minimind.samples.tools:calculator",
    "lookup": "minimind.samples.tools:lookup",
}
"""The short names of functions."""
_MOST_CHARACTERS = 2000


class ToolBox:
    """Calls tools in worker processes. A failed call gives a text which says why: the policy can
    learn from it, and it ends nothing."""

    def __init__(self, tools: Mapping[str, str], *, num_workers: int, timeout_s: float) -> None:
        """`tools` are functions by the name that the policy calls, spelled as rewards are; a
        function takes a call's arguments as keywords. Raises ConfigError."""
        self._tools = dict(tools)
        self._pool = FunctionPool(
            list(dict.fromkeys(tools.values())),
            num_workers=num_workers,
            timeout_s=timeout_s,
            shipped=SHIPPED,
            is_unpacked=True,
        )

    def check(self) -> None:
        """Raises ConfigError for a function that cannot be imported."""
        self._pool.check()

    def call(self, calls: Sequence[Mapping[str, Any] | None]) -> list[str]:
        """Gives each call's answer; None stands for a call that is not well-formed."""
        results: list[str] = [""] * len(calls)
        known: list[tuple[int, Call]] = []
        for number, call in enumerate(calls):
            if call is None:
                results[number] = "error: no JSON object with a name and arguments"
            elif call["name"] not in self._tools:
                guess = did_you_mean(call["name"], list(self._tools))
                results[number] = f"error: no tool {call['name']}{guess}"
            else:
                known.append((number, Call(self._tools[call["name"]], dict(call["arguments"]))))
        outcomes = self._pool.call([call for _, call in known])
        for (number, _), outcome in zip(known, outcomes, strict=True):
            failure = outcome.failure
            results[number] = f"error: {failure.text}" if failure else _as_text(outcome.value)
        return [_whole(result)[:_MOST_CHARACTERS] for result in results]

    def close(self) -> None:
        """Ends the worker processes."""
        self._pool.close()


def _whole(text: str) -> str:
    """Replaces each lone half of a surrogate pair, which a call's JSON may spell, by U+FFFD: it is
    no character, and no tokenizer takes it."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _as_text(value: Any) -> str:
    """Gives a result as a turn's content: a text unchanged, all else as JSON."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        return str(value)

"""Calls tools, Python functions given by name, while a policy is trained."""

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
"""The shipped tools' functions by short name."""
_MOST_CHARACTERS = 2000


class ToolBox:
    """Calls tools in worker processes. A failed call gives a text that begins with "error:" as its
    result, which the policy can learn from; it does not end the run."""

    def __init__(self, tools: Mapping[str, str], *, num_workers: int, timeout_s: float) -> None:
        """Takes the function of each tool by the name that the policy calls, written as rewards
        are. A function gets a call's arguments as keywords. Raises ConfigError."""
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
        """Gives each call's result as a text. A malformed call is None, and gives an error text."""
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
    """Replaces each lone surrogate, which JSON can spell and no tokenizer accepts, by U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _as_text(value: Any) -> str:
    """Gives a tool's result as the text of a turn: a string unchanged, anything else as JSON."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        return str(value)

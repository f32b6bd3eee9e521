"""Defines what a reward function sees of a policy's answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """Holds a prompt and the policy's answer to it. A reward is a function that takes a Rollout,
    and keyword arguments if it has any, and returns a number: the higher, the better.

    ```python
    def polite(rollout, word="please"):
        return float(word in rollout.answer)
    ```
    """

    prompt: str
    """The text of the last user turn."""
    messages: list[dict[str, Any]]
    """The turns of the prompt."""
    completion: str
    """The whole text of the last assistant turn, with its `<think>` and `<tool_call>` blocks and
    without the end token. A `<think>` that the prompt opened is put in front."""
    answer: str
    """The completion without its thought and tool calls, stripped: `answer_text(completion)`."""
    gt: Any | None
    """The right answer: the data row's "gt", else its "answer". A list holds several right
    answers."""
    row: dict[str, Any]
    """The whole data row."""
    turns: list[dict[str, Any]]
    """The turns after the prompt: assistant turns, whose "content" is the text as generated, and
    tool turns. A single entry where no tool was called."""
    num_tokens: int
    """The number of tokens that the policy generated, over all its turns."""
    is_cut: bool
    """True where a limit on tokens or on turns ended the answer."""

"""Presents a policy's answer to a reward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A prompt and what the policy made of it. A reward is a function that takes one, and keyword
    arguments if it has any, and returns a number: the higher, the better.

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
    """The whole text of the last assistant turn, its `<think>` and `<tool_call>` blocks included
    and the end token not. A `<think>` that the prompt has opened belongs to it."""
    answer: str
    """The completion without thinking and calls, stripped: `answer_text(completion)`."""
    gt: Any | None
    """What the data row gives as "gt", else as "answer": the right answer, or several of which any
    will do."""
    row: dict[str, Any]
    """The whole data row."""
    turns: list[dict[str, Any]]
    """What came after the prompt: assistant turns, with their text as generated in "content", and
    tool turns. One entry where no tool was called."""
    num_tokens: int
    """How many tokens the policy made, over all its turns."""
    is_cut: bool
    """Whether a limit ended it, and not the policy."""

"""Builds the rollouts that tests of rewards score."""

from __future__ import annotations

from typing import Any

from minimind.rewards.rollout import Rollout
from minimind.rewards.tagged_text import answer_text


def rollout(completion: str = "", prompt: str = "?", **fields: Any) -> Rollout:
    """A rollout of one assistant turn."""
    given: dict[str, Any] = {
        "prompt": prompt,
        "messages": [{"role": "user", "content": prompt}],
        "completion": completion,
        "answer": answer_text(completion),
        "gt": None,
        "row": {},
        "turns": [{"role": "assistant", "content": completion}],
        "num_tokens": len(completion),
        "is_cut": False,
    }
    return Rollout(**given | fields)

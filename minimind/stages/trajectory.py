"""Records a policy's answer to a prompt: its tokens, their origin, and their likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from minimind.data.prompt_format import Prompt
from minimind.inference.request import Completion
from minimind.rewards.rollout import Rollout
from minimind.rewards.scorer import Score
from minimind.rewards.tagged_text import THINK, answer_text, read_calls


@dataclass(slots=True)
class Trajectory:
    """Holds a prompt and what followed it: the policy's tokens, and between its turns those of tool
    results."""

    prompt: Prompt
    messages: list[dict[str, Any]]
    """The turns of the prompt."""
    index: int
    """Its number among the answers to its prompt."""
    opens_thinking: bool = False
    """Whether the text before each of its turns has opened a thinking block."""
    ids: list[int] = field(default_factory=list)
    """The tokens after the prompt."""
    log_probs: list[float | None] = field(default_factory=list)
    """By token, the logarithm of the probability that the sampler drew it with; None for a token
    that is not the policy's."""
    turns: list[dict[str, Any]] = field(default_factory=list)
    """The turns after the prompt, the assistant's with their text as it was generated."""
    is_cut: bool = False
    """Whether a limit ended it."""
    score: Score | None = None
    penalty: float = 0.0
    """Subtracted from the score for its length."""
    advantage: float = 0.0

    @property
    def num_made(self) -> int:
        """Counts the policy's own tokens."""
        return sum(value is not None for value in self.log_probs)

    @property
    def reward(self) -> float | None:
        """Gives its reward; None where that could not be computed."""
        total = None if self.score is None else self.score.total
        return None if total is None else total - self.penalty

    def add_turn(self, completion: Completion) -> list[dict[str, Any] | None]:
        """Adds a turn of the policy. Gives its tool calls, None for each that is not
        well-formed."""
        self.ids += completion.ids
        self.log_probs += [entry.logprob for entry in completion.logprobs]
        text = completion.text
        if self.opens_thinking:
            text = f"{THINK}\n{text}"
        self.turns.append({"role": "assistant", "content": text})
        self.is_cut = completion.finish_reason == "length"
        return read_calls(text)

    def add_results(self, results: Sequence[str], ids: Sequence[int]) -> None:
        """Adds the tools' results, and the tokens that show them to the policy and open its next
        turn."""
        self.turns += [{"role": "tool", "content": result} for result in results]
        self.ids += ids
        self.log_probs += [None] * len(ids)

    def to_rollout(self) -> Rollout:
        """Gives the form that rewards take."""
        row = self.prompt.row
        completion = self.turns[-1]["content"]
        asked = [turn for turn in self.messages if turn["role"] == "user"]
        return Rollout(
            prompt=str(asked[-1]["content"]) if asked else "",
            messages=self.messages,
            completion=completion,
            answer=answer_text(completion),
            gt=row.get("gt", row.get("answer")),
            row=row,
            turns=self.turns,
            num_tokens=self.num_made,
            is_cut=self.is_cut,
        )

    def describe(self) -> dict[str, Any]:
        """Gives the form that a reader of samples sees."""
        score = self.score
        return {
            "prompt": self.to_rollout().prompt,
            "completion": "\n".join(str(turn["content"]) for turn in self.turns),
            "reward": self.reward,
            **({f"reward_{name}": part for name, part in score.parts.items()} if score else {}),
            "tokens": self.num_made,
            "is_cut": self.is_cut,
        }

"""Records a policy's answer to a prompt: its tokens, who made them, and their log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from minimind.config.tags import THINK
from minimind.data.prompt_format import Prompt
from minimind.inference.request import Completion
from minimind.rewards.rollout import Rollout
from minimind.rewards.scorer import Score
from minimind.rewards.tagged_text import answer_text, read_calls


@dataclass(slots=True)
class Trajectory:
    """Holds a prompt and all that followed: the policy's tokens, and between its turns the tokens
    of tool results."""

    prompt: Prompt
    messages: list[dict[str, Any]]
    """The turns of the prompt."""
    index: int
    """The answer's number among those to the same prompt."""
    opens_thinking: bool = False
    """True where the prompt text before each assistant turn has opened a thinking block."""
    ids: list[int] = field(default_factory=list)
    """The tokens after the prompt."""
    log_probs: list[float | None] = field(default_factory=list)
    """For each token, the log-probability with which the sampler drew it; None for a token of a
    tool result or template."""
    turns: list[dict[str, Any]] = field(default_factory=list)
    """The turns after the prompt. Assistant turns hold the text as it was generated."""
    is_cut: bool = False
    """True where a limit on tokens or on turns ended the answer."""
    score: Score | None = None
    penalty: float = 0.0
    """The penalty for length, subtracted from the score."""
    advantage: float = 0.0

    @property
    def num_made(self) -> int:
        """Counts the tokens that the policy generated."""
        return sum(value is not None for value in self.log_probs)

    @property
    def reward(self) -> float | None:
        """Gives the score minus the penalty; None where the score could not be computed."""
        total = None if self.score is None else self.score.total
        return None if total is None else total - self.penalty

    def add_turn(self, completion: Completion) -> list[dict[str, Any] | None]:
        """Adds a generated turn. Gives its tool calls, with None for each malformed one."""
        self.ids += completion.ids
        self.log_probs += [entry.logprob for entry in completion.logprobs]
        text = completion.text
        if self.opens_thinking:
            text = f"{THINK}\n{text}"
        self.turns.append({"role": "assistant", "content": text})
        self.is_cut = completion.finish_reason == "length"
        return read_calls(text)

    def add_results(self, results: Sequence[str], ids: Sequence[int]) -> None:
        """Adds the tools' results, and the tokens that render them and open the policy's next
        turn."""
        self.turns += [{"role": "tool", "content": result} for result in results]
        self.ids += ids
        self.log_probs += [None] * len(ids)

    def to_rollout(self) -> Rollout:
        """Gives the answer as reward functions take it."""
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
        """Gives the answer as a row of samples.jsonl."""
        score = self.score
        return {
            "prompt": self.to_rollout().prompt,
            "completion": "\n".join(str(turn["content"]) for turn in self.turns),
            "reward": self.reward,
            **({f"reward_{name}": part for name, part in score.parts.items()} if score else {}),
            "tokens": self.num_made,
            "is_cut": self.is_cut,
        }

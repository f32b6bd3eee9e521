"""Defines the options of stages that learn from their own answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minimind.config.recipe import Recipe, check_one_of, option, option_table
from minimind.config.sizes import Sizes, default_sizes
from minimind.errors import ConfigError
from minimind.rewards.scorer import ON_ERROR

LOSS_MEANS = ("sample", "token", "length")
_PROMPTS = {"cpu": 8, "gpu": 64}
"""The default number of prompts in a step, by kind of device."""


@dataclass(frozen=True, kw_only=True)
class RolloutRecipe(Recipe):
    """Holds the options of generating answers, scoring them and learning from them. A row of the
    data is one prompt; `seq_len` limits a prompt and its answer together, in tokens."""

    weight_decay: float = option(0.0, "AdamW's decoupled weight decay")
    eval_every: int = option(20, "steps between validations (0: never)")
    eval_rows: int = option(128, "validation prompts at most (0: all)")
    save_every: int = option(100, "steps between checkpoints (0: only the last)")
    sample_every: int = option(10, "steps between answers written to samples.jsonl (0: never)")

    num_generations: int = option(6, "answers to each prompt")
    max_new_tokens: int | None = option(
        None, "most tokens of an answer, with all its turns (default: half of seq_len)"
    )
    temperature: float = option(1.0, "temperature of sampling and of the loss")
    top_k: int = option(0, "draw from the k likeliest tokens (0: all)")
    top_p: float = option(1.0, "draw from the likeliest tokens that together have this probability")
    thinking: bool = option(False, "the answer begins inside a thinking block")
    rollout_batch: int | None = option(
        None, "answers generated together on a rank (default: 64, on a GPU 256)"
    )

    rewards: dict[str, float] = option_table(
        "weight by reward: a shipped one, package.module:function or file.py:function, with "
        "keyword arguments if any, as in length_window(least=5)",
        {"exact_match": 1.0},
    )
    on_reward_error: str = option(
        ON_ERROR[0],
        f"{' or '.join(ON_ERROR)}: leave out the answer whose reward cannot be computed",
    )
    reward_timeout_s: float = option(10.0, "seconds that a reward or a tool may take")
    reward_workers: int = option(1, "processes on each rank that compute rewards and call tools")
    tools: dict[str, str] = option_table("function by a tool's name, spelled as rewards are")
    max_turns: int = option(1, "turns of the policy; after each but the last its tools are called")

    inner_epochs: int = option(1, "times that each answer is learned from")
    num_minibatches: int = option(1, "updates per pass over the answers, each on a part of them")
    loss_mean: str = option(
        "sample",
        "the loss is a mean over: sample (of the mean over its tokens), token, or length (sample, "
        "of the sum over its tokens by max_new_tokens: Dr. GRPO)",
    )
    sampler_cap: float = option(
        0.0,
        "weigh each token by the trainer's probability over the sampler's, at most this (0: off)",
    )
    mask_cut: bool = option(False, "leave answers that a token or turn limit ended out of the loss")
    overlong_buffer: int = option(
        0, "tokens before max_new_tokens over which overlong_penalty grows from 0"
    )
    overlong_penalty: float = option(
        1.0, "subtracted from the reward of an answer of max_new_tokens"
    )

    @classmethod
    def sizes(cls, device_kind: str, preset: str) -> Sizes:
        """Gives the default sizes, where rows are prompts. A micro-batch has about as many answers
        as other stages have rows; for a tiny model it has all of the step's."""
        usual, step = default_sizes(device_kind, preset), _PROMPTS[device_kind]
        fitting = max(1, usual.micro_batch_size // cls.num_generations)
        micro = step if preset == "tiny" else min(step, 1 << (fitting.bit_length() - 1))
        return Sizes(usual.seq_len, step, micro)

    def num_slots(self, device_kind: str) -> int:
        """Gives the number of answers that a rank generates together."""
        return self.rollout_batch or (64 if device_kind == "cpu" else 256)

    @property
    def new_tokens(self) -> int:
        """Gives the most tokens that an answer may have."""
        assert self.seq_len is not None
        return self.seq_len // 2 if self.max_new_tokens is None else self.max_new_tokens

    @property
    def loss_length(self) -> int | None:
        """Gives the number that the loss is divided by where loss_mean is "length"; else None."""
        return self.new_tokens if self.loss_mean == "length" else None

    @property
    def row_len(self) -> int:
        assert self.seq_len is not None
        return self.seq_len - self.new_tokens

    @property
    def updates_per_step(self) -> int:
        return self.inner_epochs * self.num_minibatches

    @property
    def format_options(self) -> dict[str, Any]:
        return {"thinking": True} if self.thinking else {}

    def check(self) -> None:
        super().check()
        self.check_at_least(
            num_generations=1,
            max_new_tokens=1,
            top_k=0,
            rollout_batch=1,
            reward_workers=1,
            max_turns=1,
            inner_epochs=1,
            num_minibatches=1,
            sampler_cap=0.0,
            overlong_buffer=0,
            overlong_penalty=0.0,
        )
        self.check_above_0("temperature", "reward_timeout_s")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.rewards and not any(self.rewards.values()):
            raise ConfigError(
                f"rewards {self.rewards}: every weight is 0, so all answers are worth the same and "
                "nothing would be learned; give one a weight"
            )
        check_one_of("loss_mean", self.loss_mean, LOSS_MEANS)
        check_one_of("on_reward_error", self.on_reward_error, ON_ERROR)
        if self.sampler_cap and (self.top_k or self.top_p < 1):
            raise ConfigError(
                "sampler_cap weighs by the probabilities that tokens were drawn with, which top_k "
                "and top_p change: leave one of them out"
            )
        if self.seq_len is not None and self.row_len < 2:
            raise ConfigError(
                f"max_new_tokens {self.new_tokens} leaves {self.row_len} of seq_len {self.seq_len} "
                "to the prompt: give fewer, or a larger --seq_len"
            )
        if self.seq_len is not None and self.overlong_buffer > self.new_tokens:
            raise ConfigError(
                f"overlong_buffer is {self.overlong_buffer}, more than the {self.new_tokens} of "
                "max_new_tokens"
            )
        if self.max_turns > 1 and not self.tools:
            raise ConfigError(
                f"max_turns is {self.max_turns}, but no turn follows without a tool's result: give "
                """--set 'tools={"NAME": "package.module:function"}'"""
            )
        if self.tools and self.max_turns == 1:
            raise ConfigError("tools are called between turns: give --set max_turns=2 or more")

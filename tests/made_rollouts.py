"""Makes trajectories from random numbers instead of a policy, and computes their log-probabilities
one trajectory at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from small_models import logits_of, pack, random_model, small_config
from torch import Tensor, nn

from minimind.config.model import ModelConfig
from minimind.data.prompt_format import Prompt
from minimind.model.transformer import Transformer
from minimind.rewards.scorer import Score
from minimind.stages.rollout_batch import RolloutBatch
from minimind.stages.trajectory import Trajectory

CONFIG = small_config()
TOOL = None
"""The log-probability that marks a token of a tool's result."""
SHAPES = ((3, "mmmmmmm"), (5, "m"), (1, "mmttmmm"), (4, "mmmmmm"), (2, "mtm"))
"""(tokens of the prompt, one letter per later token: m for the model's, else a tool's)."""
Numbers = list[list[float]]
"""For each trajectory, a number for each of its targets."""


def made(
    prompt: Sequence[int],
    ids: Sequence[int],
    log_probs: Sequence[float | None],
    *,
    reward: float | None = 0.0,
    advantage: float = 0.0,
    unit: int = 0,
    index: int = 0,
) -> Trajectory:
    return Trajectory(
        prompt=Prompt(ids=tuple(prompt), unit=unit, row={}, place=0),
        messages=[{"role": "user", "content": "?"}],
        index=index,
        ids=list(ids),
        log_probs=list(log_probs),
        turns=[{"role": "assistant", "content": "."}],
        score=Score(reward, {}),
        advantage=advantage,
    )


def made_rollouts(
    shapes: Sequence[tuple[int, str]] = SHAPES, seed: int = 0, vocab: int = CONFIG.vocab_size
) -> list[Trajectory]:
    """Makes trajectories of odd lengths with random tokens and rewards, and advantages of both
    signs."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number, (prompt, answer) in enumerate(shapes):
        ids = torch.randint(vocab, (prompt + len(answer),), generator=generator).tolist()
        log_probs = (-5 * torch.rand(len(answer), generator=generator)).tolist()
        reward, size = torch.randn(2, generator=generator).tolist()
        found.append(
            made(
                ids[:prompt],
                ids[prompt:],
                [x if who == "m" else TOOL for x, who in zip(log_probs, answer, strict=True)],
                reward=reward,
                advantage=(-1) ** number * (0.5 + abs(size)),
                unit=number,
            )
        )
    return found


def rewarded(rewards: Sequence[float | None], unit: int = 0) -> list[Trajectory]:
    """Makes a group of one-token answers to the same prompt."""
    return [
        made([1, 2], [3], [-1.0], reward=reward, unit=unit, index=index)
        for index, reward in enumerate(rewards)
    ]


def own_tokens(trajectory: Trajectory) -> list[tuple[int, int]]:
    """Gives (position, token) of each token of the policy, counted from the prompt's first
    token."""
    behind = len(trajectory.prompt.ids)
    return [
        (behind + at, token)
        for at, token in enumerate(trajectory.ids)
        if trajectory.log_probs[at] is not None
    ]


def alone(trajectory: Trajectory) -> list[list[list[int]]]:
    """Gives the trajectory as a batch of one row with one document."""
    return [[[*trajectory.prompt.ids, *trajectory.ids]]]


def plain_log_probs(
    model: Transformer, trajectory: Trajectory, temperature: float = 1.0
) -> list[Tensor]:
    """Gives the log-probability of each token of the policy, from a forward over this trajectory
    alone and its full logits."""
    log_probs_TV = (logits_of(model, pack(alone(trajectory))) / temperature).log_softmax(-1)
    return [log_probs_TV[place - 1, token] for place, token in own_tokens(trajectory)]


def flat(numbers: Numbers) -> Tensor:
    """Gives the numbers of all targets in one tensor, as a RolloutBatch has them."""
    return torch.tensor([value for of_one in numbers for value in of_one], dtype=torch.float32)


def rounded(numbers: Sequence[Sequence[Tensor]]) -> Numbers:
    """Gives the numbers rounded to fp32."""
    return [[value.float().item() for value in of_one] for of_one in numbers]


def apart(numbers: Numbers, amount: float, seed: int) -> Numbers:
    """Gives the numbers with normal noise of standard deviation `amount`."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.tensor(of_one) + amount * torch.randn(len(of_one), generator=generator)).tolist()
        for of_one in numbers
    ]


def with_numbers(
    batch: RolloutBatch, *, old: Numbers | None = None, reference: Numbers | None = None
) -> RolloutBatch:
    return replace(
        batch,
        old_R=None if old is None else flat(old),
        reference_R=None if reference is None else flat(reference),
    )


def moved(config: ModelConfig, model: Transformer, amount: float, seed: int) -> Transformer:
    """Gives a model whose weights are those of `model` plus noise."""
    found = random_model(config)
    move(found, model, amount, seed)
    return found


@torch.no_grad()
def move(module: nn.Module, start: nn.Module, amount: float, seed: int) -> None:
    """Sets a module's weights to those of `start` plus noise."""
    generator = torch.Generator().manual_seed(seed)
    for p, q in zip(module.parameters(), start.parameters(), strict=True):
        p.copy_(q + amount * torch.randn(q.shape, generator=generator))

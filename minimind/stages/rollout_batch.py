"""Lays out trajectories as batches for a policy to learn from."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minimind.stages.trajectory import Trajectory
from minimind.types import IGNORE_INDEX, Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutBatch(Batch):
    """Holds P trajectories end to end in one row without padding. The R targets are the tokens that
    the policy generated, in order, each with its own numbers. A batch without targets teaches
    nothing."""

    indices_R: Tensor
    """int64: where each target's hidden state stands among the B·T positions."""
    targets_R: Tensor
    """int64: the target tokens."""
    sample_R: Tensor
    """int64: the trajectory that each target belongs to, 0 to P - 1."""
    weights_R: Tensor
    """fp32: each target's weight in a mean over `count`: 1 / (targets of its trajectory) for a mean
    over samples, 1 for a mean over tokens."""
    advantages_R: Tensor
    """fp32: the advantage of each target."""
    sampled_R: Tensor
    """fp32: the log-probability with which the sampler drew each target."""
    rewards_P: Tensor
    """fp32: the reward of each trajectory."""
    old_R: Tensor | None = None
    """fp32: each target's log-probability under the policy before the step's first update; None
    where a step has one update, which then uses the policy's current log-probability."""
    reference_R: Tensor | None = None
    """fp32: each target's log-probability under the reference; None without a reference."""
    num_samples: int
    """P, the number of trajectories."""
    most_targets: int
    """The number of targets of the trajectory that has most."""
    counts_tokens: bool
    """True where the loss is a mean over targets, false where over trajectories."""

    @property
    def count(self) -> int:
        if self.counts_tokens or not self.num_targets:
            return self.num_targets
        return self.num_samples


def build_rollout_batch(
    trajectories: Sequence[Trajectory], *, counts_tokens: bool, teaches: bool = True
) -> RolloutBatch:
    """Lays out at least one trajectory as a batch on the CPU. With `teaches`, the trajectories' own
    tokens are targets; without, there are none."""
    assert trajectories, "a forward needs a token"
    ids: list[int] = []
    positions: list[int] = []
    starts = [0]
    places: list[int] = []
    targets: list[int] = []
    samples: list[int] = []
    sampled: list[float] = []
    for number, one in enumerate(trajectories):
        prompt = one.prompt.ids
        if teaches:
            behind = starts[-1] + len(prompt) - 1  # the state that the first token follows from
            made = [(at, value) for at, value in enumerate(one.log_probs) if value is not None]
            places += [behind + at for at, _ in made]
            targets += [one.ids[at] for at, _ in made]
            sampled += [value for _, value in made]
            samples += [number] * len(made)
        ids += [*prompt, *one.ids[:-1]]  # no target follows from the last token
        positions += range(len(ids) - starts[-1])
        starts.append(len(ids))
    ids_M = torch.tensor(ids)
    indices_R, targets_R, sample_R = torch.tensor([places, targets, samples], dtype=torch.int64)
    labels_M = torch.full_like(ids_M, IGNORE_INDEX)
    labels_M[indices_R] = targets_R
    targets_P = torch.bincount(sample_R, minlength=len(trajectories))
    ones_R = torch.ones(len(places))
    advantages_P = torch.tensor([one.advantage for one in trajectories], dtype=torch.float32)
    return RolloutBatch(
        ids_BT=ids_M[None],
        labels_BT=labels_M[None],
        positions_BT=torch.tensor(positions)[None],
        cu_seqlens=torch.tensor(starts, dtype=torch.int32),
        bounds=tuple(starts),
        is_token_BT=torch.ones(1, len(ids), dtype=torch.bool),
        max_len=max(b - a for a, b in itertools.pairwise(starts)),
        num_tokens=len(ids),
        num_targets=len(places),
        indices_R=indices_R,
        targets_R=targets_R,
        sample_R=sample_R,
        weights_R=ones_R if counts_tokens else ones_R / targets_P[sample_R],
        advantages_R=advantages_P[sample_R],
        sampled_R=torch.tensor(sampled, dtype=torch.float32),
        rewards_P=torch.tensor([one.reward or 0.0 for one in trajectories], dtype=torch.float32),
        num_samples=len(trajectories),
        most_targets=max(one.num_made for one in trajectories),
        counts_tokens=counts_tokens,
    )

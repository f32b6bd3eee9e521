"""Estimates the advantages of trajectories' targets (GAE), and their mean and deviation over all
ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from minimind.engine.deepspeed_engine import DeepSpeedEngine


def estimate_advantages(
    values_R: Tensor,
    rewards_P: Tensor,
    sample_R: Tensor,
    *,
    longest: int,
    gamma: float,
    lam: float,
) -> tuple[Tensor, Tensor]:
    """Gives (advantages_R, returns_R), fp32, by generalised advantage estimation (Schulman et al.,
    "High-Dimensional Continuous Control Using Generalized Advantage Estimation", 2016). For target
    t of a trajectory, with value V_t, discount γ = `gamma` and λ = `lam`:

        δ_t = r_t + γ·V_(t+1) - V_t,   A_t = Σ_k (γλ)^k δ_(t+k),   return_t = A_t + V_t

    r_t is the trajectory's reward at its last target and 0 elsewhere; V after the last target is 0.
    values_R: fp32, by target; rewards_P: fp32, by trajectory; sample_R: int64, each target's
    trajectory, ascending; `longest`: an upper bound on a trajectory's targets. Does not wait for a
    GPU.
    """
    num_samples = len(rewards_P)
    counts_P = torch.zeros_like(rewards_P, dtype=torch.int64).index_add(
        0, sample_R, torch.ones_like(sample_R)
    )
    first_P = counts_P.cumsum(0) - counts_P
    column_R = torch.arange(len(sample_R), device=sample_R.device) - first_P[sample_R]
    is_last_R = column_R == counts_P[sample_R] - 1
    values_R64 = values_R.double()
    next_R = torch.where(is_last_R, 0.0, values_R64.roll(-1))
    rewards_R = torch.where(is_last_R, rewards_P.double()[sample_R], 0.0)
    delta_R = rewards_R + gamma * next_R - values_R64
    delta_PL = delta_R.new_zeros(num_samples, longest).index_put((sample_R, column_R), delta_R)
    # One matrix product instead of a loop over tokens: decay_LL[s, t] = (γλ)^(s - t) for s >= t.
    steps_L = torch.arange(longest, device=sample_R.device, dtype=torch.float64)
    apart_LL = steps_L[:, None] - steps_L
    decay_LL = torch.where(apart_LL >= 0, (gamma * lam) ** apart_LL.clamp(min=0), 0.0)
    advantages_R = (delta_PL @ decay_LL)[sample_R, column_R]
    return advantages_R.float(), (advantages_R + values_R64).float()


def mean_and_deviation(engine: DeepSpeedEngine, values_N: Tensor) -> tuple[Tensor, Tensor]:
    """Gives the mean and the population standard deviation of all ranks' values, as fp64 scalars on
    the device, without waiting for it; 0 and 0 where there are no values. All ranks call it."""
    wide_N = values_N.double()
    sums = torch.stack([wide_N, wide_N.square(), torch.ones_like(wide_N)]).sum(1)
    total, squares, count = engine.sum_over_ranks(sums).unbind()
    mean = total / count.clamp(min=1)
    return mean, (squares / count.clamp(min=1) - mean**2).clamp(min=0).sqrt()

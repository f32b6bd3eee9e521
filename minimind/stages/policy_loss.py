"""Computes the loss of a policy's own tokens from their change in likelihood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import minimind_kernels as K
import torch
from torch import Tensor

from minimind.engine.stage import Policy
from minimind.stages.rollout_batch import RolloutBatch
from minimind.types import HeadFn, ModelOutput

_MOST_LOG_RATIO = 20.0
"""Keeps ratios finite: an advantage of 0 times one of them is 0."""

LossType = Literal["grpo", "cispo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLoss:
    """With A a token's advantage, π, old and ref the log-probabilities under the policy, under it
    before the step's first update, and under the reference, and r = e^(π - old):

        grpo     -min(r·A, clip(r, 1 - ε, 1 + ε_high)·A)          (Schulman et al. 2017, Shao et al.
                                                                  2024)
        cispo    -min(r, 1 + ε_high)·A·π, the minimum detached    (MiniMax-M1, 2025)
        + β·k3,  k3 = e^(ref - π) - (ref - π) - 1                 (Schulman 2020)

    `by_sequence`: r is e^mean(π - old) over a trajectory's targets, for each of them (GSPO, Zheng
    et al. 2025). `sampler_cap`: the first part is weighed by min(e^(old - sampled), cap), detached,
    sampled being the log-probability that the sampler drew with (Yao et al. 2025).
    """

    loss_type: LossType
    beta: float
    epsilon: float
    epsilon_high: float
    by_sequence: bool = False
    sampler_cap: float = 0.0
    temperature: float = 1.0
    """The temperature of all log-probabilities."""
    length: int | None = None
    """Each target weighs 1 / length; None: the batch's own weights."""

    def compute(self, policy: Policy, batch: RolloutBatch) -> tuple[ModelOutput, Tensor]:
        """Gives the weighted loss of each target, as `per_token` fp32 [R], and π, detached."""
        kept: list[Tensor] = []

        def head(hidden_MD: Tensor, weight_VD: Tensor) -> Tensor:
            inputs = (target_states(hidden_MD, batch, self.temperature), weight_VD, batch.targets_R)
            if self._joins_tokens(batch):
                # A token's gradient follows from its whole trajectory: known only once all are.
                log_prob_R = K.linear_log_prob(*inputs)
                kept.append(log_prob_R.detach())
                return self.loss(log_prob_R, batch, slice(None))
            loss_R, log_prob_R = K.linear_token_loss(
                *inputs, lambda log_prob_C, rows: self.loss(log_prob_C, batch, rows)
            )
            kept.append(log_prob_R)
            return loss_R

        output = policy(batch, head=head)
        return output, kept[-1]

    def loss(self, log_prob_C: Tensor, batch: RolloutBatch, rows: slice | Tensor) -> Tensor:
        """Gives the weighted loss of some targets: fp32 [C], from π of them."""
        old_C = log_prob_C.detach() if batch.old_R is None else batch.old_R[rows]
        advantages_C = batch.advantages_R[rows]
        ratio_C = self._ratio(log_prob_C, old_C, batch)
        if self.loss_type == "cispo":
            followed_C = ratio_C.detach().clamp(max=1 + self.epsilon_high)
            loss_C = -followed_C * advantages_C * log_prob_C
        else:
            clipped_C = ratio_C.clamp(1 - self.epsilon, 1 + self.epsilon_high)
            loss_C = -torch.minimum(ratio_C * advantages_C, clipped_C * advantages_C)
        if self.sampler_cap:
            gap_C = old_C - batch.sampled_R[rows]
            loss_C = loss_C * gap_C.exp().clamp(max=self.sampler_cap)
        if self.beta and batch.reference_R is not None:
            loss_C = loss_C + self.beta * k3(log_prob_C, batch.reference_R[rows])
        return self.weigh(loss_C, batch, rows)

    def weigh(
        self, loss_C: Tensor, batch: RolloutBatch, rows: slice | Tensor = slice(None)
    ) -> Tensor:
        """Weights the losses of some targets so that their sum over `batch.count` is the wanted
        mean."""
        return loss_C / self.length if self.length else loss_C * batch.weights_R[rows]

    def _joins_tokens(self, batch: RolloutBatch) -> bool:
        # At r = 1 a sequence's ratio has the gradient that its tokens' have together, so nothing
        # is to be joined then, unless the sampler gives each token a weight of its own.
        return self.by_sequence and (batch.old_R is not None or self.sampler_cap > 0)

    def _ratio(self, log_prob_C: Tensor, old_C: Tensor, batch: RolloutBatch) -> Tensor:
        log_ratio_C = log_prob_C - old_C
        if self._joins_tokens(batch):
            # In fp64 a GPU's changing order of additions does not reach fp32's digits.
            wide_C = log_ratio_C.double()
            zeros_P = wide_C.new_zeros(batch.num_samples)
            counts_P = zeros_P.index_add(0, batch.sample_R, torch.ones_like(wide_C))
            sums_P = zeros_P.index_add(0, batch.sample_R, wide_C)
            log_ratio_C = (sums_P / counts_P.clamp(min=1)).float()[batch.sample_R]
        return log_ratio_C.clamp(max=_MOST_LOG_RATIO).exp()

    @torch.no_grad()
    def metrics(self, log_prob_R: Tensor, batch: RolloutBatch) -> dict[str, Tensor]:
        """Sums over `batch.count`: the policy's `kl` from the reference (NaN without one), its
        `entropy` as -π of tokens drawn from it, the share of tokens whose ratio is clipped, and how
        far apart sampler and trainer see a token on average (`sampler_gap`)."""
        old_R = log_prob_R if batch.old_R is None else batch.old_R
        ratio_R, advantages_R = self._ratio(log_prob_R, old_R, batch), batch.advantages_R
        is_clipped_R = ratio_R > 1 + self.epsilon_high
        if self.loss_type == "grpo":
            is_low_R = (ratio_R < 1 - self.epsilon) & (advantages_R < 0)
            is_clipped_R = (is_clipped_R & (advantages_R > 0)) | is_low_R
        kl_R = torch.full_like(log_prob_R, torch.nan)
        if batch.reference_R is not None:
            kl_R = k3(log_prob_R, batch.reference_R)
        by_name = {
            "kl": kl_R,
            "entropy": -log_prob_R,
            "clip_share": is_clipped_R.float(),
            "sampler_gap": (old_R - batch.sampled_R).abs(),
        }
        return {name: (value_R * batch.weights_R).sum() for name, value_R in by_name.items()}


METRICS = ("kl", "entropy", "clip_share", "sampler_gap")


def k3(log_prob_R: Tensor, reference_R: Tensor) -> Tensor:
    """Estimates KL(policy || reference) from tokens of the policy; never below 0 [R]."""
    gap_R = (reference_R - log_prob_R).clamp(max=_MOST_LOG_RATIO)
    return gap_R.exp() - gap_R - 1


@torch.no_grad()
def rollout_log_probs(policy: Policy, batch: RolloutBatch, temperature: float) -> Tensor:
    """Gives the log-probability of each target at the temperature, fp32 [R]."""

    return policy(batch, head=log_prob_head(batch, temperature)).per_token


def log_prob_head(batch: RolloutBatch, temperature: float) -> HeadFn:
    """Gives the head that computes the same inside a model's forward."""

    def head(hidden_MD: Tensor, weight_VD: Tensor) -> Tensor:
        hidden_RD = target_states(hidden_MD, batch, temperature)
        return K.linear_log_prob(hidden_RD, weight_VD, batch.targets_R)

    return head


def target_states(hidden_MD: Tensor, batch: RolloutBatch, temperature: float) -> Tensor:
    """Gives the states that the targets follow from, divided by the temperature as their logits
    would be: [R, D]."""
    hidden_RD = hidden_MD.index_select(0, batch.places_R)
    return hidden_RD if temperature == 1.0 else hidden_RD / temperature

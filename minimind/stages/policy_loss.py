"""Computes the policy-gradient loss of tokens that the policy itself generated."""

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
"""The largest log-ratio, so that ratios stay finite: an advantage of 0 times infinity would be NaN.
"""

LossType = Literal["grpo", "cispo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLoss:
    """Computes the loss of each target. A is the target's advantage; π, old and ref are its
    log-probabilities under the policy, under the policy before the step's first update, and under
    the reference; r = e^(π - old) is the ratio, ε = epsilon and ε_high = epsilon_high:

        grpo     -min(r·A, clip(r, 1 - ε, 1 + ε_high)·A)          (Schulman et al. 2017, Shao et al.
                                                                   2024)
        cispo    -min(r, 1 + ε_high)·A·π, the minimum detached    (MiniMax-M1, 2025)
        + β·k3,  k3 = e^(ref - π) - (ref - π) - 1                 (Schulman 2020)

    With `by_sequence`, r of every target of a trajectory is e^mean(π - old) over its targets (GSPO,
    Zheng et al. 2025). With `sampler_cap`, the first line is multiplied by min(e^(old - sampled),
    cap), detached, where sampled is the log-probability under the sampler that drew the token (Yao
    et al. 2025).
    """

    loss_type: LossType
    beta: float
    epsilon: float
    epsilon_high: float
    by_sequence: bool = False
    sampler_cap: float = 0.0
    temperature: float = 1.0
    """All log-probabilities are computed at this temperature."""
    length: int | None = None
    """Divides each target's loss; None uses the batch's own weights."""

    def compute(self, policy: Policy, batch: RolloutBatch) -> tuple[ModelOutput, Tensor]:
        """Gives the weighted loss of each target as `per_token`, fp32 [R], and π of each,
        detached."""
        kept: list[Tensor] = []

        def head(hidden_MD: Tensor, weight_VD: Tensor) -> Tensor:
            inputs = (target_states(hidden_MD, batch, self.temperature), weight_VD, batch.targets_R)
            if self._joins_tokens(batch):
                # A sequence's ratio, and so a token's gradient, needs the log-probabilities of all
                # its tokens.
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
        """Gives the weighted loss of the targets `rows`, fp32 [C], from their log-probabilities
        π."""
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
        """Weights the losses of the targets `rows`, so that their sum over all targets divided by
        `batch.count` is the mean that the recipe asks for."""
        return loss_C / self.length if self.length else loss_C * batch.weights_R[rows]

    def _joins_tokens(self, batch: RolloutBatch) -> bool:
        # At r = 1 a sequence's ratio has the same gradient as its tokens' ratios together, so
        # tokens need no joining before the first update, unless the sampler's correction weighs
        # each by itself.
        return self.by_sequence and (batch.old_R is not None or self.sampler_cap > 0)

    def _ratio(self, log_prob_C: Tensor, old_C: Tensor, batch: RolloutBatch) -> Tensor:
        log_ratio_C = log_prob_C - old_C
        if self._joins_tokens(batch):
            # Summed in fp64: the changing order of additions on a GPU then does not reach fp32's
            # digits.
            wide_C = log_ratio_C.double()
            zeros_P = wide_C.new_zeros(batch.num_samples)
            counts_P = zeros_P.index_add(0, batch.sample_R, torch.ones_like(wide_C))
            sums_P = zeros_P.index_add(0, batch.sample_R, wide_C)
            log_ratio_C = (sums_P / counts_P.clamp(min=1)).float()[batch.sample_R]
        return log_ratio_C.clamp(max=_MOST_LOG_RATIO).exp()

    @torch.no_grad()
    def metrics(self, log_prob_R: Tensor, batch: RolloutBatch) -> dict[str, Tensor]:
        """Gives sums over the targets, scaled like the loss: `kl` from the reference (NaN without
        one), `entropy` estimated as -π, `clip_share` (the share of clipped ratios), and
        `sampler_gap` (how far sampler and trainer differ on a token's log-probability)."""
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
    """Estimates KL(policy ‖ reference) for each token drawn from the policy, fp32 [R]; never below
    0."""
    gap_R = (reference_R - log_prob_R).clamp(max=_MOST_LOG_RATIO)
    return gap_R.exp() - gap_R - 1


@torch.no_grad()
def rollout_log_probs(policy: Policy, batch: RolloutBatch, temperature: float) -> Tensor:
    """Gives the log-probability of each target at `temperature`, fp32 [R]."""
    return policy(batch, head=log_prob_head(batch, temperature)).per_token


def log_prob_head(batch: RolloutBatch, temperature: float) -> HeadFn:
    """Gives a head that computes the log-probability of each target inside the model's forward."""

    def head(hidden_MD: Tensor, weight_VD: Tensor) -> Tensor:
        hidden_RD = target_states(hidden_MD, batch, temperature)
        return K.linear_log_prob(hidden_RD, weight_VD, batch.targets_R)

    return head


def target_states(hidden_MD: Tensor, batch: RolloutBatch, temperature: float) -> Tensor:
    """Gives the hidden states that predict the targets, [R, D], divided by the temperature: this
    divides the logits by it."""
    hidden_RD = hidden_MD.index_select(0, batch.indices_R)
    return hidden_RD if temperature == 1.0 else hidden_RD / temperature

"""Computes the feed-forward part of a block as a mixture of experts."""

from __future__ import annotations

import minimind_kernels as K
import torch
from torch import Tensor, nn

from minimind.config.model import ModelConfig
from minimind.model.feed_forward import SwiGLU
from minimind.model.router_report import RouterReport


class MixtureOfExperts(nn.Module):
    """Computes Σ_s weight_s · expert_s(x) + shared(x): each token goes to the S experts that its
    router scores highest (Shazeer et al. 2017), and to the shared experts (Dai et al. 2024).

    Every expert is a SwiGLU. The shared experts are computed as a single SwiGLU, as wide as all of
    them together.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        experts, hidden, ffn = config.num_experts, config.hidden_size, config.moe_intermediate_size
        self.gate = nn.Linear(hidden, experts, bias=False)
        # Parameters of this module, not of children, because of ZeRO-3: see Attention.
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * ffn, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, ffn))
        self.matrices = {"gate_up_proj": (ffn, ffn), "down_proj": (hidden,)}
        shared = config.n_shared_experts
        self.shared_experts = SwiGLU(hidden, shared * ffn) if shared else None

    def forward(self, x_MD: Tensor, report: RouterReport | None = None) -> Tensor:
        """Gives [M, D]. In training the layer's routing (auxiliary loss and load) is added to
        `report`."""
        routing = K.moe_routing(
            self.gate(x_MD),
            self.config.num_experts_per_tok,
            norm_topk_prob=self.config.renormalizes_experts,
            is_counted_M=report.is_counted_M if report else None,
            cu_seqlens=report.cu_seqlens if report else None,
            seq_aux=self.config.seq_aux and report is not None,
        )
        if report:
            report.add(routing)
        out_MD = self.run_experts(x_MD, routing)
        return out_MD if self.shared_experts is None else out_MD + self.shared_experts(x_MD)

    def run_experts(self, x_MD: Tensor, routing: K.Routing) -> Tensor:
        return K.expert_ffn(x_MD, self.gate_up_proj, self.down_proj, routing)

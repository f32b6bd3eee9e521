"""Computes MiniMind's mixture of experts in `transformers` (trust_remote_code=True).

The model is a Qwen3, in some layers with routed and shared experts, and possibly without QK norm.
It computes what MiniMind computes, to run it or to train it further; the loss that balances the
experts in training is not added.
"""

import torch
from torch import nn
from transformers.models.qwen3.modeling_qwen3 import Qwen3ForCausalLM

from .configuration_minimind_moe import MiniMindMoeConfig


class MiniMindExpert(nn.Module):
    """Computes down(silu(gate(x)) · up(x))."""

    def __init__(self, hidden_size, intermediate_size):
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class MiniMindExperts(nn.Module):
    """Computes the sum of the experts that a token's router scores highest, each times its
    probability, and of the shared experts."""

    def __init__(self, config):
        super().__init__()
        ours = config.minimind
        sizes = (config.hidden_size, config.moe_intermediate_size)
        self.num_experts_per_tok = config.num_experts_per_tok
        # The 2-series never divides the probability of a single expert by itself.
        is_single = config.num_experts_per_tok == 1 and ours["model_type"] == "llama"
        self.renormalizes = config.norm_topk_prob and not is_single
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = nn.ModuleList(MiniMindExpert(*sizes) for _ in range(config.num_experts))
        shared = [MiniMindExpert(*sizes) for _ in range(ours["n_shared_experts"])]
        if shared:
            self.shared_experts = nn.ModuleList(shared)
        self.num_shared = len(shared)

    def forward(self, hidden_states):
        x = hidden_states.reshape(-1, hidden_states.shape[-1])
        probabilities = self.gate(x).softmax(dim=-1, dtype=torch.float32)
        weights, chosen = probabilities.topk(self.num_experts_per_tok, dim=-1)
        if self.renormalizes:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        out = torch.zeros_like(x, dtype=torch.float32)
        for number, expert in enumerate(self.experts):
            token, place = torch.where(chosen == number)
            out.index_add_(0, token, expert(x[token]).float() * weights[token, place, None])
        out = out.to(x.dtype)
        for number in range(self.num_shared):
            out = out + self.shared_experts[number](x)
        return out.view_as(hidden_states)


class MiniMindMoeForCausalLM(Qwen3ForCausalLM):
    config_class = MiniMindMoeConfig

    def __init__(self, config):
        super().__init__(config)
        for number, layer in enumerate(self.model.layers):
            if not config.minimind["use_qk_norm"]:
                layer.self_attn.q_norm = nn.Identity()
                layer.self_attn.k_norm = nn.Identity()
            if number not in config.mlp_only_layers:
                layer.mlp = MiniMindExperts(config)
        self.post_init()

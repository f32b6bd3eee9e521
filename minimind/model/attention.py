"""Computes grouped-query attention over packed documents or a key/value cache."""

from __future__ import annotations

from collections.abc import Callable

import minimind_kernels as K
import torch
from torch import Tensor, nn

from minimind.config.model import ModelConfig

AttentionFn = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q_MNH, k_MKH, v_MKH) -> softmax(q·kᵀ/√H)·v, [M, N, H]. The function decides which tokens see one
another: the tokens of a packed document, or of a sequence in one layer of a cache."""


class Attention(nn.Module):
    """Computes o_proj(attend(rope(norm(q)), rope(norm(k)), v)); one matrix product gives q, k and
    v."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        heads, kv_heads, size = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        self.qkv_proj = nn.Linear(config.hidden_size, (heads + 2 * kv_heads) * size, bias=False)
        self.o_proj = nn.Linear(heads * size, config.hidden_size, bias=False)
        # The norms' weights are parameters of this module, not of children: ZeRO-3 gathers a
        # module's own weights when its forward is called, and the fused operation below calls no
        # child.
        self.q_norm = nn.Parameter(torch.ones(size)) if config.use_qk_norm else None
        self.k_norm = nn.Parameter(torch.ones(size)) if config.use_qk_norm else None
        self.matrices = {
            "qkv_proj.weight": (heads * size, kv_heads * size, kv_heads * size),
            "o_proj.weight": (config.hidden_size,),
        }

    def forward(
        self, x_MD: Tensor, rope: tuple[Tensor, Tensor], positions_M: Tensor, attend: AttentionFn
    ) -> Tensor:
        config = self.config
        q_MNH, k_MKH, v_MKH = K.qk_rope(
            self.qkv_proj(x_MD),
            *rope,
            positions_M,
            config.num_attention_heads,
            config.num_key_value_heads,
            self.q_norm,
            self.k_norm,
            eps=config.rms_norm_eps,
            cast_before_weight=config.norm_cast_before_weight,
        )
        return self.o_proj(attend(q_MNH, k_MKH, v_MKH).flatten(1))

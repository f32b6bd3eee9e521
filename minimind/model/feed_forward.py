"""The feed-forward half of a block."""

from __future__ import annotations

import minimind_kernels as K
from torch import Tensor, nn

from minimind.config.model import ModelConfig


class SwiGLU(nn.Module):
    """down_proj(silu(gate) · up), with gate and up one fused product (Shazeer 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_MD: Tensor) -> Tensor:
        return self.down_proj(K.swiglu(self.gate_up_proj(x_MD)))

"""Computes the feed-forward part of a block."""

from __future__ import annotations

import minimind_kernels as K
from torch import Tensor, nn


class SwiGLULinear(nn.Linear):
    """Computes (silu(gate)·up)·Wᵀ from the packed [gate, up]. Activation and product are one
    operation, so that only the packed input is kept for the backward. The weight belongs to this
    module, so ZeRO-3 gathers it when the module is called."""

    def forward(self, input: Tensor) -> Tensor:
        return K.swiglu_linear(input, self.weight)


class SwiGLU(nn.Module):
    """Computes down_proj(silu(gate)·up), where one matrix product gives gate and up (Shazeer
    2020)."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(hidden_size, 2 * intermediate_size, bias=False)
        self.down_proj = SwiGLULinear(intermediate_size, hidden_size, bias=False)
        self.matrices = {
            "gate_up_proj.weight": (intermediate_size, intermediate_size),
            "down_proj.weight": (hidden_size,),
        }

    def forward(self, x_MD: Tensor) -> Tensor:
        return self.down_proj(self.gate_up_proj(x_MD))

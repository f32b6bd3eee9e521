"""The feed-forward half of a block."""

from __future__ import annotations

import minimind_kernels as K
from torch import Tensor, nn


class SwiGLULinear(nn.Linear):
    """A linear over silu(gate) · up of the packed product it is given. Activation and product are
    one operation, which keeps the packed product alone for the backward; as a module with the
    weight in it, so that ZeRO-3 gathers that when it is called."""

    def forward(self, input: Tensor) -> Tensor:
        return K.swiglu_linear(input, self.weight)


class SwiGLU(nn.Module):
    """down_proj of silu(gate) · up, with gate and up one fused product (Shazeer 2020)."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(hidden_size, 2 * intermediate_size, bias=False)
        self.down_proj = SwiGLULinear(intermediate_size, hidden_size, bias=False)

    def forward(self, x_MD: Tensor) -> Tensor:
        return self.down_proj(self.gate_up_proj(x_MD))

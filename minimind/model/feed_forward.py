"""The feed-forward half of a block."""

from __future__ import annotations

import minimind_kernels as K
from torch import Tensor, nn

from minimind.model.router_report import RouterReport


class SwiGLU(nn.Module):
    """down_proj(silu(gate) · up), with gate and up one fused product (Shazeer 2020)."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(hidden_size, 2 * intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x_MD: Tensor, report: RouterReport | None = None) -> Tensor:
        """Has no router, and adds nothing to `report`."""
        return self.down_proj(K.swiglu(self.gate_up_proj(x_MD)))

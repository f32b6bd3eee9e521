"""fp32 masters of a model that trains in 16 bits in a bare loop."""

from __future__ import annotations

import torch
from torch import nn


class Masters:
    """What the optimizer updates: copies in fp32, or weights that are in it themselves."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        """Casts `module`, which is in fp32, to `dtype`."""
        self._weights = [weight for weight in module.parameters() if weight.requires_grad]
        self.parameters = self._weights
        if dtype != torch.float32:
            self.parameters = [nn.Parameter(weight.detach().clone()) for weight in self._weights]
            module.to(dtype)

    def gather_gradients(self) -> None:
        """After a backward: adds the weights' gradients up in fp32."""
        if self.parameters is self._weights:
            return
        for weight, master in zip(self._weights, self.parameters, strict=True):
            assert weight.grad is not None
            if master.grad is None:
                master.grad = weight.grad.float()
            else:
                master.grad.add_(weight.grad)
            weight.grad = None

    @torch.no_grad()
    def write_back(self) -> None:
        """After an update: the weights are the masters, rounded."""
        if self.parameters is not self._weights:
            for weight, master in zip(self._weights, self.parameters, strict=True):
                weight.copy_(master)

"""What the routers of one forward say, beside what the blocks hand on."""

from __future__ import annotations

import torch
from minimind_kernels.moe_routing import Routing
from torch import Tensor
from torch.nn import functional

from minimind.types import Batch, ExpertLoad


class RouterReport:
    """Collects the routings of all layers of one training forward."""

    def __init__(self, batch: Batch) -> None:
        self.is_counted_M = batch.is_token_BT.flatten()
        self.cu_seqlens = batch.cu_seqlens
        self._routings: list[Routing] | None = []

    def add(self, routing: Routing) -> None:
        """One layer's, in the order of the layers. Ignored once summed up: activation
        checkpointing runs every block again in the backward."""
        if self._routings is not None:
            self._routings.append(routing)

    def sum_up(self, coefficient: float) -> tuple[Tensor, ExpertLoad]:
        """`coefficient` · the sum of the layers' auxiliary losses, and their experts' load."""
        assert self._routings, "a model with experts has a layer with experts"
        routings, self._routings = self._routings, None
        aux_loss = coefficient * torch.stack([r.aux_loss for r in routings]).sum()
        return aux_loss, self._load(routings)

    @torch.no_grad()
    def _load(self, routings: list[Routing]) -> ExpertLoad:
        """Counted in the order in which the experts take their tokens, so that one left out or
        taken twice shows."""
        num_slots = routings[0].experts_MS.shape[1]
        order_LP = torch.stack([r.order_P for r in routings]).long()
        offsets_LE1 = torch.stack([r.offsets_E1 for r in routings]).long()
        counted_LP = self.is_counted_M[order_LP // num_slots].cumsum(dim=1)
        tokens_LE = functional.pad(counted_LP, (1, 0)).gather(1, offsets_LE1).diff(dim=1)
        due = self.is_counted_M.sum() * num_slots * len(routings)
        return ExpertLoad(tokens_LE=tokens_LE, dropped=due - tokens_LE.sum())

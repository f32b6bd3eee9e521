"""Collects the routers' numbers of one forward, outside the values that blocks return."""

from __future__ import annotations

import torch
from minimind_kernels.moe_routing import Routing
from torch import Tensor
from torch.nn import functional

from minimind.types import Batch


class RouterReport:
    """Collects the routings of all layers of one training forward."""

    def __init__(self, batch: Batch) -> None:
        self.is_counted_M = batch.is_token_BT.flatten()
        self.cu_seqlens = batch.cu_seqlens
        self._routings: list[Routing] | None = []

    @property
    def is_open(self) -> bool:
        """Tells whether more layers may be added: false once they are summed up."""
        return self._routings is not None

    def add(self, routing: Routing) -> None:
        """Adds one layer's routing, in the order of the layers. Calls after summing up are ignored:
        activation checkpointing runs every block again in the backward."""
        if self._routings is not None:
            self._routings.append(routing)

    def sum_up(self, coefficient: float) -> Tensor:
        """Gives `coefficient` · the sum of the layers' auxiliary losses."""
        assert self._routings, "a model with experts has a layer with experts"
        routings, self._routings = self._routings, None
        return coefficient * torch.stack([r.aux_loss for r in routings]).sum()

    @torch.no_grad()
    def count_load(self) -> tuple[Tensor, Tensor]:
        """Gives (the tokens that each expert of each layer took, int64 [L, E]; the tokens that none
        took), without padding. Tokens are counted in the order in which the experts take them, so
        that a token left out or taken twice shows; experts have no capacity limit, so none should
        be."""
        assert self._routings
        num_slots = self._routings[0].experts_MS.shape[1]
        order_LP = torch.stack([r.order_P for r in self._routings]).long()
        offsets_LE1 = torch.stack([r.offsets_E1 for r in self._routings]).long()
        counted_LP = self.is_counted_M[order_LP // num_slots].cumsum(dim=1)
        tokens_LE = functional.pad(counted_LP, (1, 0)).gather(1, offsets_LE1).diff(dim=1)
        due = self.is_counted_M.sum() * num_slots * len(self._routings)
        return tokens_LE, due - tokens_LE.sum()

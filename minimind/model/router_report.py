"""Collects the routers' results of a forward, which blocks do not return."""

from __future__ import annotations

import torch
from minimind_kernels.moe_routing import Routing
from torch import Tensor
from torch.nn import functional

from minimind.types import Batch


class RouterReport:
    """Collects the routings of all layers in one training forward."""

    def __init__(self, batch: Batch) -> None:
        self.is_counted_M = batch.is_token_BT.flatten()
        self.cu_seqlens = batch.cu_seqlens
        self._routings: list[Routing] | None = []

    @property
    def is_open(self) -> bool:
        """Tells whether layers may still be added: until `sum_up` is called."""
        return self._routings is not None

    def add(self, routing: Routing) -> None:
        """Adds one layer's routing, in the order of the layers. After `sum_up` it does nothing,
        since activation checkpointing runs every block again in the backward."""
        if self._routings is not None:
            self._routings.append(routing)

    def sum_up(self, coefficient: float) -> Tensor:
        """Gives `coefficient` times the sum of the layers' auxiliary losses."""
        assert self._routings, "a model with experts has a layer with experts"
        routings, self._routings = self._routings, None
        return coefficient * torch.stack([r.aux_loss for r in routings]).sum()

    @torch.no_grad()
    def count_load(self) -> tuple[Tensor, Tensor]:
        """Gives (tokens taken by each expert of each layer, int64 [L, E]; tokens taken by none),
        without padding. Experts have no capacity limit, so the second should be 0; tokens are
        counted in the order in which experts take them, so that one left out or taken twice
        shows."""
        assert self._routings
        num_slots = self._routings[0].experts_MS.shape[1]
        order_LP = torch.stack([r.order_P for r in self._routings]).long()
        offsets_LE1 = torch.stack([r.offsets_E1 for r in self._routings]).long()
        counted_LP = self.is_counted_M[order_LP // num_slots].cumsum(dim=1)
        tokens_LE = functional.pad(counted_LP, (1, 0)).gather(1, offsets_LE1).diff(dim=1)
        due = self.is_counted_M.sum() * num_slots * len(self._routings)
        return tokens_LE, due - tokens_LE.sum()

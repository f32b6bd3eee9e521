"""Stores keys and values of many sequences, preallocated: one slot of fixed capacity for each.

Slots and not pages: a small model's keys and values are a few kilobytes a token, so a slot of a
whole context is affordable, and the tokens of a slot are one view of the cache. Pages would have to
be gathered before each product. Memory that no sequence has reached is never touched on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from minimind.config.model import ModelConfig
from minimind.model.cached_attention import CachePlan
from minimind.model.rope import rope_tables


class KVCache:
    """Holds `capacity` tokens in each of `num_slots` slots, in every layer.

    The caller keeps track of which tokens stand where: a plan says it for each forward.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_slots: int,
        capacity: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        heads, size = config.num_key_value_heads, config.head_dim
        self.num_slots, self.capacity, self.num_kv_heads = num_slots, capacity, heads
        shape = (2, config.num_hidden_layers, num_slots, heads, capacity, size)
        # Zeros: a token's products reach to the longest of its neighbours' slots, with weight 0
        # there, and 0 times what memory happens to hold could be NaN (see `clear`).
        self._kv_2LSKCH = _lazy_zeros(shape, dtype, device)
        self.rope = rope_tables(config, capacity, device)
        keys, values = self._kv_2LSKCH
        self.layers = [CacheLayer(k, v) for k, v in zip(keys, values, strict=True)]

    @property
    def device(self) -> torch.device:
        return self._kv_2LSKCH.device

    def clear(self, slot: int) -> None:
        """Clears a slot after a sequence whose keys or values may not be finite."""
        self._kv_2LSKCH[:, :, slot] = 0

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` tokens of one slot into another."""
        kv = self._kv_2LSKCH
        kv[:, :, target, :, :length] = kv[:, :, source, :, :length]


def _lazy_zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Allocates zeros; on a CPU by calloc, which NumPy uses and PyTorch does not, so that pages
    appear when written to."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(memory).view(dtype).view(shape)


class CacheLayer:
    """Holds one layer's keys and values."""

    def __init__(self, keys_SKCH: Tensor, values_SKCH: Tensor) -> None:
        self.keys_SKCH, self.values_SKCH = keys_SKCH, values_SKCH
        size = keys_SKCH.shape[-1]
        self._key_places, self._value_places = keys_SKCH.view(-1, size), values_SKCH.view(-1, size)

    def store(self, places_MK: Tensor, k_MKH: Tensor, v_MKH: Tensor) -> None:
        """Stores the new keys and values. `places_MK`, int64, counts heads of tokens in their order
        in memory."""
        size = k_MKH.shape[-1]
        places = places_MK.view(-1)
        self._key_places.index_copy_(0, places, k_MKH.reshape(-1, size))
        self._value_places.index_copy_(0, places, v_MKH.reshape(-1, size))


class PlannedLayer:
    """Joins one layer of a cache and a forward's plan; a block uses it as `attend`."""

    def __init__(self, layer: CacheLayer, plan: CachePlan) -> None:
        self._layer, self._plan = layer, plan

    def attend(self, q_MNH: Tensor, k_MKH: Tensor, v_MKH: Tensor) -> Tensor:
        """Stores the new keys and values; each new token sees all before it and itself."""
        layer, plan = self._layer, self._plan
        layer.store(plan.places_MK, k_MKH, v_MKH)
        return plan.attend(q_MNH, layer.keys_SKCH, layer.values_SKCH)

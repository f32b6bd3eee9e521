"""Stores the keys and values of many sequences in preallocated slots of fixed capacity.

There are slots and no pages: a small model needs a few kilobytes per token, so a slot for a whole
context is affordable, and a slot's tokens are a view of the cache; pages would have to be gathered
before each product. On a CPU, memory that no sequence has reached is never touched.
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
    """Holds `capacity` tokens in each of `num_slots` slots, for every layer.

    The caller decides which tokens lie where: each forward gets a plan (CachePlan) that says so.
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
        # Zeros: products read up to the length of the longest neighbouring slot, with weight 0
        # beyond a sequence's end, and 0 times whatever the memory holds could be NaN (see `clear`).
        self._kv_2LSKCH = _lazy_zeros(shape, dtype, device)
        self.rope = rope_tables(config, capacity, device)
        keys, values = self._kv_2LSKCH
        self.layers = [CacheLayer(k, v) for k, v in zip(keys, values, strict=True)]

    @property
    def device(self) -> torch.device:
        return self._kv_2LSKCH.device

    def clear(self, slot: int) -> None:
        """Sets a slot to zero after a sequence whose keys or values may not be finite."""
        self._kv_2LSKCH[:, :, slot] = 0

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` tokens of slot `source` into slot `target`."""
        kv = self._kv_2LSKCH
        kv[:, :, target, :, :length] = kv[:, :, source, :, :length]


def _lazy_zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Allocates zeros. On a CPU it uses calloc, as NumPy does and PyTorch does not, so that memory
    is used only once written."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(memory).view(dtype).view(shape)


class CacheLayer:
    """Holds the keys and values of one layer."""

    def __init__(self, keys_SKCH: Tensor, values_SKCH: Tensor) -> None:
        self.keys_SKCH, self.values_SKCH = keys_SKCH, values_SKCH
        size = keys_SKCH.shape[-1]
        self._key_places, self._value_places = keys_SKCH.view(-1, size), values_SKCH.view(-1, size)

    def attend(self, plan: CachePlan, q_MNH: Tensor, k_MKH: Tensor, v_MKH: Tensor) -> Tensor:
        """Stores the new keys and values, then lets each new token see itself and all before it."""
        size, places = k_MKH.shape[-1], plan.places_MK.view(-1)
        self._key_places.index_copy_(0, places, k_MKH.reshape(-1, size))
        self._value_places.index_copy_(0, places, v_MKH.reshape(-1, size))
        return plan.attend(q_MNH, self.keys_SKCH, self.values_SKCH)

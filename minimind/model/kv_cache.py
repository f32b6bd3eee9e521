"""Keys and values of one sequence, preallocated so that a step copies only what is new."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from minimind.config.model import ModelConfig


class KVCache:
    """Room for `capacity` tokens in every layer. `length` says how many are filled."""

    def __init__(
        self, config: ModelConfig, capacity: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (config.num_hidden_layers, config.num_key_value_heads, capacity, config.head_dim)
        self.capacity = capacity
        self.length = 0
        keys_LKTH = torch.empty(shape, dtype=dtype, device=device)
        values_LKTH = torch.empty(shape, dtype=dtype, device=device)
        self.layers = [CacheLayer(self, k, v) for k, v in zip(keys_LKTH, values_LKTH, strict=True)]


class CacheLayer:
    """One layer's keys and values."""

    def __init__(self, cache: KVCache, keys_KTH: Tensor, values_KTH: Tensor) -> None:
        self.cache, self.keys_KTH, self.values_KTH = cache, keys_KTH, values_KTH

    def attend(self, q_MNH: Tensor, k_MKH: Tensor, v_MKH: Tensor) -> Tensor:
        """Stores the new keys and values; each new token sees all before it and itself."""
        start, new = self.cache.length, len(q_MNH)
        end = start + new
        assert end <= self.cache.capacity, "the caller sizes the cache"
        self.keys_KTH[:, start:end] = k_MKH.transpose(0, 1)
        self.values_KTH[:, start:end] = v_MKH.transpose(0, 1)
        mask = None
        if start and new > 1:
            mask = torch.ones(new, end, dtype=torch.bool, device=q_MNH.device).tril_(start)
        out = F.scaled_dot_product_attention(
            q_MNH.transpose(0, 1)[None],
            self.keys_KTH[None, :, :end],
            self.values_KTH[None, :, :end],
            attn_mask=mask,
            is_causal=new > 1 and mask is None,
            enable_gqa=True,
        )
        return out[0].transpose(0, 1)

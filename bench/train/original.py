"""Holds the baseline: the same model as plain PyTorch modules over padded batches, with whole
logits.

A reader would write this first, and the original MiniMind trains in this way. Parameters have
Hugging Face's names, so that our weights load unchanged once they are split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimind.config.model import ModelConfig
from minimind.errors import ConfigError
from minimind.types import IGNORE_INDEX


class PlainRMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.type_as(x)


def rotate_half(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def repeat_kv(x_BTKH: Tensor, times: int) -> Tensor:
    if times == 1:
        return x_BTKH
    batch, length, heads, size = x_BTKH.shape
    repeated = x_BTKH[:, :, :, None, :].expand(batch, length, heads, times, size)
    return repeated.reshape(batch, length, heads * times, size)


class PlainAttention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        hidden, size = config.hidden_size, config.head_dim
        q, kv = config.num_attention_heads * size, config.num_key_value_heads * size
        self.q_proj = nn.Linear(hidden, q, bias=False)
        self.k_proj = nn.Linear(hidden, kv, bias=False)
        self.v_proj = nn.Linear(hidden, kv, bias=False)
        self.o_proj = nn.Linear(q, hidden, bias=False)
        if config.use_qk_norm:
            self.q_norm = PlainRMSNorm(size, config.rms_norm_eps)
            self.k_norm = PlainRMSNorm(size, config.rms_norm_eps)

    def forward(
        self, x_BTD: Tensor, cos_TH: Tensor, sin_TH: Tensor, past: list[Tensor] | None = None
    ) -> Tensor:
        """Computes attention. `past` is empty or holds keys and values of the tokens before; the
        new ones are added to it."""
        config, (batch, length, _) = self.config, x_BTD.shape
        q = self.q_proj(x_BTD).view(batch, length, config.num_attention_heads, config.head_dim)
        k = self.k_proj(x_BTD).view(batch, length, config.num_key_value_heads, config.head_dim)
        v = self.v_proj(x_BTD).view(batch, length, config.num_key_value_heads, config.head_dim)
        if config.use_qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        cos, sin = cos_TH[:, None, :], sin_TH[:, None, :]
        q, k = q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin
        if past is not None:
            if past:
                k, v = torch.cat((past[0], k), dim=1), torch.cat((past[1], v), dim=1)
            past[:] = k, v
        times = config.num_attention_heads // config.num_key_value_heads
        q, k, v = (x.transpose(1, 2) for x in (q, repeat_kv(k, times), repeat_kv(v, times)))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=length > 1)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))


class PlainFeedForward(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class PlainBlock(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = PlainRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = PlainAttention(config)
        self.post_attention_layernorm = PlainRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = PlainFeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, cos_TH: Tensor, sin_TH: Tensor, past: list[Tensor] | None = None
    ) -> Tensor:
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), cos_TH, sin_TH, past))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class PlainDecoder(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(PlainBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = PlainRMSNorm(config.hidden_size, config.rms_norm_eps)


class OriginalModel(nn.Module):
    """Computes ids [B, T] to logits [B, T, V]."""

    cos_TH: Tensor
    sin_TH: Tensor

    def __init__(self, config: ModelConfig, length: int) -> None:
        """Makes the model for padded rows of `length` tokens. Raises ConfigError for YaRN, which it
        lacks."""
        super().__init__()
        if config.rope_scaling is not None:
            raise ConfigError("the row `original` has no rope_scaling: leave it out of --rows")
        self.model = PlainDecoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        pairs = torch.arange(0, config.head_dim, 2).float() / config.head_dim
        angles = torch.outer(torch.arange(length).float(), config.rope_theta**-pairs)
        self.register_buffer("cos_TH", torch.cat((angles, angles), -1).cos(), persistent=False)
        self.register_buffer("sin_TH", torch.cat((angles, angles), -1).sin(), persistent=False)

    def load_split(self, weights: Mapping[str, Tensor]) -> None:
        """Loads weights under Hugging Face's names, as `split_fused` gives them."""
        tied = {"lm_head.weight": weights["model.embed_tokens.weight"]}
        self.load_state_dict(tied | dict(weights))

    def forward(self, ids_BT: Tensor, pasts: Sequence[list[Tensor]] | None = None) -> Tensor:
        """Gives the logits of all tokens. With `pasts` (keys and values for each layer) the tokens
        follow those in `pasts`, and only the last one has logits."""
        decoder, length = self.model, ids_BT.shape[1]
        start = pasts[0][0].shape[1] if pasts and pasts[0] else 0
        rope = [table[start : start + length] for table in (self.cos_TH, self.sin_TH)]
        x = decoder.dropout(decoder.embed_tokens(ids_BT))
        for block, past in zip(decoder.layers, pasts or [None] * len(decoder.layers), strict=True):
            x = block(x, *rope, past)
        return self.lm_head(decoder.norm(x if pasts is None else x[:, -1:]))


def original_loss(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """Gives the mean loss over the targets of the batch; padding is no target."""
    return F.cross_entropy(logits_BTV.flatten(0, 1), labels_BT.flatten(), ignore_index=IGNORE_INDEX)

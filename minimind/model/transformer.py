"""Defines the transformer: embedding, blocks, final norm and output head."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import cast

import minimind_kernels as K
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minimind.config.model import ModelConfig
from minimind.model.attention import Attention, AttentionFn
from minimind.model.cached_attention import CachePlan
from minimind.model.document_attention import plan_attention
from minimind.model.feed_forward import SwiGLU
from minimind.model.kv_cache import KVCache
from minimind.model.moe import MixtureOfExperts
from minimind.model.rope import rope_tables
from minimind.model.router_report import RouterReport
from minimind.types import Batch, HeadFn, ModelOutput


class RMSNorm(nn.Module):
    """Computes x / rms(x) · weight over the last dimension (Zhang & Sennrich 2019)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.hidden_size))
        self.eps = config.rms_norm_eps
        self.cast_before_weight = config.norm_cast_before_weight

    def forward(self, x_MD: Tensor, residual_MD: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Gives (sum, norm of sum); the sum is x + residual, or x where there is no residual."""
        if residual_MD is None:
            return x_MD, K.rms_norm(x_MD, self.weight, self.eps, self.cast_before_weight)
        return K.add_rms_norm(x_MD, residual_MD, self.weight, self.eps, self.cast_before_weight)


class Block(nn.Module):
    """Computes x + attention(norm(x)), then adds ffn(norm(x)) to that.

    The last addition is left to the next norm, which adds and normalises in one pass: so a block
    takes and gives (the value still to add, the sum so far).
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config)
        self.has_experts = config.has_experts(layer)
        self.mlp = (
            MixtureOfExperts(config)
            if self.has_experts
            else SwiGLU(config.hidden_size, config.intermediate_size)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        delta_MD: Tensor,
        residual_MD: Tensor | None,
        rope: tuple[Tensor, Tensor],
        positions_M: Tensor,
        attend: AttentionFn,
        report: RouterReport | None = None,
    ) -> tuple[Tensor, Tensor]:
        residual_MD, x_MD = self.input_layernorm(delta_MD, residual_MD)
        delta_MD = self.dropout(self.self_attn(x_MD, rope, positions_M, attend))
        residual_MD, x_MD = self.post_attention_layernorm(delta_MD, residual_MD)
        delta_MD = self.mlp(x_MD, report) if self.has_experts else self.mlp(x_MD)
        return self.dropout(delta_MD), cast(Tensor, residual_MD)


class OutputHead(nn.Module):
    """Owns the output matrix (the embedding's own if tied) and passes it to a stage's head function
    inside a forward, where ZeRO-3 has gathered it."""

    def __init__(self, weight_VD: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight_VD

    def forward(self, hidden_MD: Tensor, head: HeadFn) -> Tensor:
        return head(hidden_MD, self.weight)


class Transformer(nn.Module):
    """Is the whole model. `forward` trains on packed documents; `decode` continues many
    sequences."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config)
        head = cast(nn.Parameter, self.embed_tokens.weight)
        if not config.tie_word_embeddings:
            head = nn.Parameter(torch.empty_like(head))
        self.lm_head = OutputHead(head)
        self.dropout = nn.Dropout(config.dropout)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Draws every matrix from N(0, initializer_range²) and sets every norm's weight to 1, with
        the same numbers on every device."""
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0)
                continue
            values = torch.empty(parameter.shape)
            values.normal_(0.0, self.config.initializer_range, generator=generator)
            parameter.copy_(values)

    @torch.no_grad()
    def load_named(self, weights: Mapping[str, Tensor]) -> None:
        """Copies weights into the parameters of the same names (those of model/state_dict.py)."""
        for name, parameter in self.named_parameters():
            parameter.copy_(weights[name])

    def forward(self, batch: Batch, head: HeadFn) -> ModelOutput:
        """Computes head(hidden [B·T, D], output matrix [V, D]) over the packed documents of
        `batch`."""
        ids_M, positions_M = batch.ids_BT.flatten(), batch.positions_BT.flatten()
        rope = rope_tables(self.config, batch.max_len, ids_M.device)
        embedded_MD = self.dropout(self.embed_tokens(ids_M))
        plan = plan_attention(
            batch, self.config.num_attention_heads, self.config.head_dim, embedded_MD.dtype
        )
        report = None
        if self.config.num_experts and self.training and torch.is_grad_enabled():
            report = RouterReport(batch)
        delta_MD, residual_MD = embedded_MD, None
        for block in self.layers:
            inputs = (delta_MD, residual_MD, rope, positions_M, plan.attend, report)
            if self.activation_checkpointing and torch.is_grad_enabled():
                delta_MD, residual_MD = cast(
                    tuple[Tensor, Tensor], checkpoint(block, *inputs, use_reentrant=False)
                )
            else:
                delta_MD, residual_MD = block(*inputs)
        _, hidden_MD = self.norm(delta_MD, residual_MD)
        per_token = self.lm_head(hidden_MD, head)
        if report is None:
            return ModelOutput(per_token=per_token)
        aux_loss = report.sum_up(self.config.router_aux_loss_coef)
        return ModelOutput(per_token=per_token, aux_loss=aux_loss)

    @torch.no_grad()
    def decode(
        self, ids_M: Tensor, cache: KVCache, plan: CachePlan, wanted_R: Tensor | None = None
    ) -> Tensor:
        """Gives fp32 logits [R, V] after the tokens `wanted_R` of `ids_M` (None: after all). Each
        token follows its sequence's tokens in `cache`, and is added to them."""
        positions_M = plan.positions_M
        delta_MD, residual_MD = self.embed_tokens(ids_M), None
        for block, layer in zip(self.layers, cache.layers, strict=True):
            attend = functools.partial(layer.attend, plan)
            delta_MD, residual_MD = block(delta_MD, residual_MD, cache.rope, positions_M, attend)
        residual_MD = cast(Tensor, residual_MD)
        if wanted_R is not None:
            delta_MD, residual_MD = delta_MD[wanted_R], residual_MD[wanted_R]
        _, hidden_RD = self.norm(delta_MD, residual_MD)
        return nn.functional.linear(hidden_RD, self.lm_head.weight).float()

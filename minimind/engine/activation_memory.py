"""What a model keeps for its backward on one rank, counted tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minimind_kernels import backend

from minimind.config.deepspeed_json import precision
from minimind.config.model import ModelConfig
from minimind.config.recipe import Recipe
from minimind.model.document_attention import FLASH_FROM

_LOGITS_CHUNK = {"cpu": 1024, "gpu": 4096}
"""Tokens whose logits exist at once (minimind_kernels/token_chunks.py)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What runs on one rank."""

    config: ModelConfig
    recipe: Recipe
    """With its sizes resolved."""
    ds_config: Mapping[str, Any]
    world_size: int
    device_kind: str
    documents: Sequence[Sequence[int]] = ()
    """Tokens of each document, by micro-batch: attention on a CPU keeps more of long ones. Empty:
    documents as long as rows."""

    @property
    def tokens(self) -> int:
        """Of a micro-batch."""
        return self.recipe.micro_batch_tokens

    @property
    def size(self) -> int:
        """Bytes of a number in the products."""
        return 4 if precision(dict(self.ds_config)) == "fp32" else 2

    @property
    def accumulation(self) -> int:
        return int(self.ds_config["gradient_accumulation_steps"])

    @property
    def zero(self) -> Mapping[str, Any]:
        return self.ds_config.get("zero_optimization") or {}

    @property
    def offloads_optimizer(self) -> bool:
        """To the host's memory, which a CPU does not have beside its own."""
        target = (self.zero.get("offload_optimizer") or {}).get("device", "none")
        return target != "none" and self.device_kind == "gpu"

    @property
    def zero_stage(self) -> int:
        return int(self.zero.get("stage", 0))


def saved_activations(work: Workload) -> int:
    """What every layer keeps for its backward, and the last norm's sum."""
    config, size, tokens = work.config, work.size, work.tokens
    layers = [_layer_bytes(work, layer) for layer in range(config.num_hidden_layers)]
    copied = _copied_results(work)
    last = size * config.hidden_size + 4
    if work.recipe.activation_checkpointing:
        # A block's two inputs each, and one block computed again.
        kept = 2 * size * config.hidden_size * len(layers)
        return tokens * (kept + max(layers) + last) + copied
    return tokens * (sum(layers) + last) + copied * len(layers)


def _layer_bytes(work: Workload, layer: int) -> int:
    """Of one token: each norm's sum, result and 1/rms; qkv as one product
    (its values are read out of it), q and k rotated, the attention's result; the feed-forward's
    gate and up, whose activation is made again."""
    config, size = work.config, work.size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    width = 4 * config.hidden_size + (queries + 2 * keys) + (2 * queries + keys)
    more = 2 * 4 + (4 * config.num_attention_heads if work.device_kind == "gpu" else 0)
    if config.dropout:
        width += 2 * config.hidden_size
    if not config.has_experts(layer):
        return size * (width + 2 * config.intermediate_size) + more
    chosen, ffn = config.num_experts_per_tok, config.moe_intermediate_size
    width += config.num_experts + 2 * (chosen + config.n_shared_experts) * ffn
    return size * width + more + 16 * chosen + 4 * config.num_experts


def feed_forward_gradient(work: Workload) -> int:
    """Beside what is saved, the gradient of gate and up, and outside of experts that of the
    activation and the activation made again; that of the output takes the place of the last
    norm's. Without generated code the factors of the activation's derivative are more than both."""
    config = work.config
    dense = config.intermediate_size if not config.num_experts or config.mlp_only_layers else 0
    dense = max(dense, config.n_shared_experts * config.moe_intermediate_size)
    ffn = max(config.active_ffn_size, dense)
    plain = _is_plain(work, work.tokens * ffn)
    return work.tokens * (work.size * 2 * ffn + (4 * 4 * ffn if plain else work.size * 2 * dense))


def _copied_results(work: Workload) -> int:
    """Of one layer: on a CPU the attention's result of documents from FLASH_FROM tokens on is kept
    a second time."""
    if work.device_kind == "gpu":
        return 0
    assert work.recipe.seq_len is not None
    micro_batches = work.documents or [[work.recipe.seq_len] * (work.tokens // work.recipe.seq_len)]
    tokens = max(sum(n for n in documents if n >= FLASH_FROM) for documents in micro_batches)
    return tokens * work.size * work.config.num_attention_heads * work.config.head_dim


def attention_mask(work: Workload) -> int:
    """On a CPU one is kept for all documents below FLASH_FROM tokens."""
    return 0 if work.device_kind == "gpu" else work.size * (FLASH_FROM - 1) ** 2


def logits_chunk(work: Workload) -> int:
    """A chunk's, and where no code is generated the fp32 copies that the softmax makes of it."""
    tokens, vocab = work.tokens, work.config.vocab_size
    chunks = -(-tokens // _LOGITS_CHUNK[work.device_kind])
    chunk = -(-tokens // chunks) * vocab
    return chunk * (work.size + (12 if _is_plain(work, tokens * vocab) else 0))


def _is_plain(work: Workload, elements: int) -> bool:
    """Whether an operation over the tokens runs in PyTorch's own passes, which keep each result."""
    return work.device_kind == "cpu" and not backend.use_compiled_cpu(work.tokens, elements)

"""Makes small models and batches token by token, and computes the model a second time in plain
PyTorch: one document at a time, every formula written out, in fp64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minimind.config.model import ModelConfig
from minimind.model.state_dict import split_fused
from minimind.model.transformer import Transformer
from minimind.types import IGNORE_INDEX, Batch

FAMILIES = ("llama", "qwen3")
"""The model types of the 2-series and the 3-series."""
EXPERTS: list[dict[str, Any]] = [
    {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40},
    {"num_experts": 3, "norm_topk_prob": False, "mlp_only_layers": (0,)},
    {"num_experts": 5, "num_experts_per_tok": 3, "n_shared_experts": 2, "seq_aux": True},
    {"num_experts": 4, "num_experts_per_tok": 1},
]
"""The fields that make a small configuration a mixture of experts."""
Ids = Sequence[int]


def small_config(family: str = "qwen3", **changes: Any) -> ModelConfig:
    """Gives a configuration of two layers, with 4 query heads over 2 key heads and the family's
    norms."""
    series: dict[str, Any] = {"model_type": family, "use_qk_norm": family == "qwen3"}
    if family == "llama":
        series |= {"norm_cast_before_weight": True, "rms_norm_eps": 1e-5}
    sizes = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "head_dim": 12}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
    return ModelConfig(**(series | sizes | heads | changes))


def random_model(config: ModelConfig, seed: int = 0) -> Transformer:
    """Gives a model whose weights are large enough that every part changes the output visibly."""
    model = Transformer(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if parameter.dim() == 1 else 0.15 * noise)
    return model


def random_documents(lengths: Sequence[int], vocab: int = 97, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(vocab, (n,), generator=generator).tolist() for n in lengths]


def pack(rows: Sequence[Sequence[Ids]], seq_len: int | None = None, pad_id: int = 0) -> Batch:
    """Packs each row's documents side by side, padded to `seq_len` (default: the longest row)."""
    seq_len = seq_len or max(sum(map(len, row)) for row in rows)
    ids, labels, positions, starts, is_token = [], [], [], [], []
    for row in rows:
        for document in [*row, [pad_id] * (seq_len - sum(map(len, row)))]:
            if not document:
                continue
            is_padding = len(ids) % seq_len >= sum(map(len, row))
            starts.append(len(ids))
            ids += document
            is_token += [not is_padding] * len(document)
            positions += range(len(document))
            targets = [IGNORE_INDEX] * (len(document) - 1) if is_padding else list(document[1:])
            labels += [*targets, IGNORE_INDEX]
    cu_seqlens = [*starts, len(ids)]
    return Batch(
        ids_BT=torch.tensor(ids).view(len(rows), seq_len),
        labels_BT=torch.tensor(labels).view(len(rows), seq_len),
        positions_BT=torch.tensor(positions).view(len(rows), seq_len),
        cu_seqlens=torch.tensor(cu_seqlens, dtype=torch.int32),
        bounds=tuple(cu_seqlens),
        is_token_BT=torch.tensor(
            [[t < sum(map(len, row)) for t in range(seq_len)] for row in rows]
        ),
        max_len=max(b - a for a, b in itertools.pairwise(cu_seqlens)),
        num_tokens=sum(len(document) for row in rows for document in row),
        num_targets=sum(label != IGNORE_INDEX for label in labels),
    )


def logits_of(model: Transformer, batch: Batch) -> Tensor:
    """Gives the logits [M, V], which the model itself never returns."""
    found: list[Tensor] = []

    def head(hidden_MD: Tensor, weight_VD: Tensor) -> Tensor:
        found.append(hidden_MD @ weight_VD.T)
        return found[0].sum(1)

    model(batch, head)
    return found[0]


def loss_of(model: Transformer, batch: Batch) -> Tensor:
    """Gives the cross-entropy summed over the targets."""
    logits_MV = logits_of(model, batch)
    return F.cross_entropy(logits_MV, batch.labels_BT.flatten(), reduction="sum")


def gradients(model: Transformer, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def assert_same_gradients(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], most: float = 1e-4
) -> None:
    """Each weight's gradients differ by less than `most` of their norm."""
    for name, gradient in found.items():
        assert (gradient - wanted[name]).norm() <= most * wanted[name].norm(), name


def double(model: Transformer) -> Transformer:
    """Gives a copy of the model in fp64."""
    copy = Transformer(model.config)
    copy.load_named(dict(model.named_parameters()))
    return copy.double()


def reference_frequencies(config: ModelConfig) -> Tensor:
    """Gives the rotary frequencies in radians per position, fp64: theta^(-2i/d), scaled as
    `config.rope_scaling` says."""
    d, theta = config.head_dim, config.rope_theta
    plain = [math.exp(-(2 * i / d) * math.log(theta)) for i in range(d // 2)]
    scaling = config.rope_scaling or {}
    scale = {"yarn": _yarn, "linear": _linear, "llama3": _llama3}.get(scaling.get("rope_type", ""))
    if scale is not None:
        plain = [scale(config, scaling, i, f) for i, f in enumerate(plain)]
    return torch.tensor(plain, dtype=torch.float64)


def _linear(config: ModelConfig, linear: dict[str, Any], i: int, f: float) -> float:
    return f / linear["factor"]


def _llama3(config: ModelConfig, llama3: dict[str, Any], i: int, f: float) -> float:
    """Follows the definition by wavelengths: short ones stay, long ones are stretched."""
    original, wavelength = llama3["original_max_position_embeddings"], 2 * math.pi / f
    if wavelength < original / llama3["high_freq_factor"]:
        return f
    if wavelength > original / llama3["low_freq_factor"]:
        return f / llama3["factor"]
    low, high = llama3["low_freq_factor"], llama3["high_freq_factor"]
    smooth = (original / wavelength - low) / (high - low)
    return (1 - smooth) * f / llama3["factor"] + smooth * f


def _yarn(config: ModelConfig, yarn: dict[str, Any], i: int, f: float) -> float:
    d, theta = config.head_dim, config.rope_theta
    original, factor = yarn["original_max_position_embeddings"], yarn["factor"]
    inv = [
        d * math.log(original / (2 * math.pi * b)) / (2 * math.log(theta))
        for b in (yarn["beta_fast"], yarn["beta_slow"])
    ]
    low = max(math.floor(inv[0]), 0)
    high = min(math.ceil(inv[1]), d // 2 - 1)
    ramp = min(max((i - low) / max(high - low, 0.001), 0.0), 1.0)
    return f * (1 - ramp + ramp / factor)


def reference_logits(
    model: Transformer,
    document: Ids,
    dropout: Callable[[Tensor], Tensor] = lambda x: x,
    first_position: int = 0,
) -> Tensor:
    """Gives the logits [L, V] in fp64. `dropout` is called wherever the model applies it, in the
    model's order."""
    config = model.config
    state = dict(model.named_parameters())
    w = {name: tensor.detach().double() for name, tensor in split_fused(config, state).items()}
    length, size = len(document), config.head_dim
    positions = torch.arange(first_position, first_position + length, dtype=torch.float64)
    angles = positions[:, None] * reference_frequencies(config)
    turn = torch.polar(torch.ones_like(angles), angles)
    hidden_from = torch.ones(length, length, dtype=torch.bool).triu(1)

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * weight

    def rotate(x: Tensor) -> Tensor:
        pairs = torch.complex(x[..., : size // 2], x[..., size // 2 :]) * turn
        return torch.cat([pairs.real, pairs.imag], dim=-1)

    x = dropout(w["model.embed_tokens.weight"][torch.tensor(document)])
    for i in range(config.num_hidden_layers):
        layer = {
            name.removeprefix(f"model.layers.{i}.").removesuffix(".weight"): tensor
            for name, tensor in w.items()
            if name.startswith(f"model.layers.{i}.")
        }
        y = norm(x, layer["input_layernorm"])
        heads = []
        for head in range(config.num_attention_heads):
            kv_head = head * config.num_key_value_heads // config.num_attention_heads
            q = (y @ layer["self_attn.q_proj"].T)[:, head * size : (head + 1) * size]
            k = (y @ layer["self_attn.k_proj"].T)[:, kv_head * size : (kv_head + 1) * size]
            v = (y @ layer["self_attn.v_proj"].T)[:, kv_head * size : (kv_head + 1) * size]
            if config.use_qk_norm:
                q = norm(q, layer["self_attn.q_norm"])
                k = norm(k, layer["self_attn.k_norm"])
            scores = rotate(q) @ rotate(k).T / math.sqrt(size)
            heads.append(scores.masked_fill(hidden_from, -math.inf).softmax(-1) @ v)
        x = x + dropout(torch.cat(heads, -1) @ layer["self_attn.o_proj"].T)
        y = norm(x, layer["post_attention_layernorm"])
        x = x + dropout(_reference_feed_forward(config, layer, y))
    head_weight = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return norm(x, w["model.norm.weight"]) @ head_weight.T


def _reference_feed_forward(config: ModelConfig, layer: dict[str, Tensor], x: Tensor) -> Tensor:
    """Computes a layer's feed-forward from its tensors by name; with experts, token by token."""

    def swiglu(part: str, x: Tensor) -> Tensor:
        gate, up = (x @ layer[f"mlp.{part}{name}_proj"].T for name in ("gate", "up"))
        return (gate * gate.sigmoid() * up) @ layer[f"mlp.{part}down_proj"].T

    if "mlp.gate" not in layer:
        return swiglu("", x)
    outputs = []
    for token in x:
        shares = (layer["mlp.gate"] @ token).softmax(0).tolist()
        chosen = sorted(range(len(shares)), key=lambda e: -shares[e])[: config.num_experts_per_tok]
        weights = {e: shares[e] for e in chosen}
        one_of_2_series = len(chosen) == 1 and config.model_type == "llama"
        if config.norm_topk_prob and not one_of_2_series:
            weights = {e: share / sum(weights.values()) for e, share in weights.items()}
        parts = [weight * swiglu(f"experts.{e}.", token) for e, weight in weights.items()]
        shared = range(config.n_shared_experts)
        parts += [swiglu(f"shared_experts.{s}.", token) for s in shared]
        outputs.append(torch.stack(parts).sum(0))
    return torch.stack(outputs)

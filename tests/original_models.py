"""Makes small models of the original MiniMind's generations, and computes them in plain PyTorch
from tensors under the generation's own names. Nothing of the package is used, so that its
conversions are compared with something else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Words:
    """Holds what a generation calls its tensors."""

    prefix: str
    embedding: str
    head: str
    attention: str
    qkvo: tuple[str, str, str, str]
    ffn: str
    gate_up_down: tuple[str, str, str]
    norms: tuple[str, str]


OLD = Words(
    prefix="",
    embedding="tok_embeddings",
    head="output",
    attention="attention",
    qkvo=("wq", "wk", "wv", "wo"),
    ffn="feed_forward",
    gate_up_down=("w1", "w3", "w2"),
    norms=("attention_norm", "ffn_norm"),
)
NEW = Words(
    prefix="model.",
    embedding="model.embed_tokens",
    head="lm_head",
    attention="self_attn",
    qkvo=("q_proj", "k_proj", "v_proj", "o_proj"),
    ffn="mlp",
    gate_up_down=("gate_proj", "up_proj", "down_proj"),
    norms=("input_layernorm", "post_attention_layernorm"),
)


@dataclass(frozen=True)
class Plain:
    """Describes a small model of one generation: "2504", "2601" or "3"."""

    generation: str
    experts: int = 0
    shared: int = 0
    heads: int = 8
    kv_heads: int = 2
    size: int = 4
    hidden: int = 32
    ffn: int = 48
    vocab: int = 61
    layers: int = 2
    untied: bool = False

    @property
    def words(self) -> Words:
        return OLD if self.generation == "2504" else NEW

    @property
    def is_3(self) -> bool:
        return self.generation == "3"


DENSE = [Plain("2504"), Plain("2601"), Plain("3", kv_heads=4, size=6)]
MIXED = [
    Plain("2504", experts=4, shared=1),
    Plain("2601", experts=3, shared=2),
    Plain("3", experts=4, kv_heads=4),
]


def shapes_of(plain: Plain) -> dict[str, tuple[int, ...]]:
    """Gives the shape of each tensor but the output head."""
    words, hidden, ffn = plain.words, plain.hidden, plain.ffn
    q, kv = plain.heads * plain.size, plain.kv_heads * plain.size
    shapes: dict[str, tuple[int, ...]] = {words.embedding: (plain.vocab, hidden)}
    for i in range(plain.layers):
        layer = f"{words.prefix}layers.{i}."
        sizes = ((q, hidden), (kv, hidden), (kv, hidden), (hidden, q))
        for name, size in zip(words.qkvo, sizes, strict=True):
            shapes[f"{layer}{words.attention}.{name}"] = size
        if plain.is_3:
            shapes[f"{layer}self_attn.q_norm"] = shapes[f"{layer}self_attn.k_norm"] = (plain.size,)
        for place in feed_forwards(plain):
            for name in words.gate_up_down[:2]:
                shapes[f"{layer}{words.ffn}.{place}{name}"] = (ffn, hidden)
            shapes[f"{layer}{words.ffn}.{place}{words.gate_up_down[2]}"] = (hidden, ffn)
        if plain.experts:
            shapes[f"{layer}{words.ffn}.gate"] = (plain.experts, hidden)
        for name in words.norms:
            shapes[layer + name] = (hidden,)
    return shapes | {f"{words.prefix}norm": (hidden,)}


def feed_forwards(plain: Plain) -> list[str]:
    """Gives where the feed-forwards of a layer stand: the routed experts, then the shared."""
    if not plain.experts:
        return [""]
    if plain.generation == "2504":
        shared = ["shared_experts."] * plain.shared
    else:
        shared = [f"shared_experts.{s}." for s in range(plain.shared)]
    return [f"experts.{e}." for e in range(plain.experts)] + shared


def random_state(plain: Plain, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict:
    """Gives a state_dict with random weights, as the original saves it."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for name, shape in shapes_of(plain).items():
        noise = torch.randn(shape, generator=generator)
        state[f"{name}.weight"] = (1 + 0.2 * noise if len(shape) == 1 else 0.2 * noise).to(dtype)
    head = state[f"{plain.words.embedding}.weight"]
    if plain.untied:
        head = 0.2 * torch.randn(head.shape, generator=generator).to(dtype)
    return state | {f"{plain.words.head}.weight": head}


def square_linears(plain: Plain) -> list[str]:
    """Gives the linears that the original adapts."""
    found = shapes_of(plain)
    return [n for n, s in found.items() if len(s) == 2 and s[0] == s[1] and "layers" in n]


def random_lora(plain: Plain, rank: int, seed: int = 5) -> dict[str, Tensor]:
    """Gives an adapter as the original saves it."""
    generator = torch.Generator().manual_seed(seed)
    lora: dict[str, Tensor] = {}
    for name in square_linears(plain):
        size = shapes_of(plain)[name][0]
        lora[f"{name}.lora.A.weight"] = 0.2 * torch.randn(rank, size, generator=generator)
        lora[f"{name}.lora.B.weight"] = 0.2 * torch.randn(size, rank, generator=generator)
    return lora


def plain_logits(
    plain: Plain, state: Mapping[str, Tensor], ids: Sequence[int], theta: float = 1e6
) -> Tensor:
    """Computes the logits [T, V] in fp32."""
    words = plain.words
    w = {name.removesuffix(".weight"): tensor.float() for name, tensor in state.items()}

    def linear(name: str, x: Tensor) -> Tensor:
        y = x @ w[name].T
        if f"{name}.lora.A" in w:
            y = y + x @ w[f"{name}.lora.A"].T @ w[f"{name}.lora.B"].T
        return y

    def norm(name: str, x: Tensor) -> Tensor:
        eps = 1e-6 if plain.is_3 else 1e-5
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * w[name]

    def swiglu(place: str, x: Tensor) -> Tensor:
        gate, up, down = (place + name for name in words.gate_up_down)
        return linear(down, torch.nn.functional.silu(linear(gate, x)) * linear(up, x))

    x = w[words.embedding][torch.tensor(list(ids))]
    for i in range(plain.layers):
        layer = f"{words.prefix}layers.{i}."
        y = norm(layer + words.norms[0], x)
        q, k, v = (
            linear(f"{layer}{words.attention}.{name}", y).unflatten(1, (-1, plain.size))
            for name in words.qkvo[:3]
        )
        if plain.is_3:
            q, k = norm(f"{layer}self_attn.q_norm", q), norm(f"{layer}self_attn.k_norm", k)
        q, k = (rotate(plain, part, theta) for part in (q, k))
        heads = []
        for head in range(plain.heads):
            of_key = head * plain.kv_heads // plain.heads
            scores = q[:, head] @ k[:, of_key].T / math.sqrt(plain.size)
            hidden_from = torch.ones_like(scores, dtype=torch.bool).triu(1)
            heads.append(scores.masked_fill(hidden_from, -math.inf).softmax(-1) @ v[:, of_key])
        x = x + linear(f"{layer}{words.attention}.{words.qkvo[3]}", torch.cat(heads, dim=1))
        y = norm(layer + words.norms[1], x)
        places = [f"{layer}{words.ffn}.{place}" for place in feed_forwards(plain)]
        if not plain.experts:
            x = x + swiglu(places[0], y)
            continue
        shares = linear(f"{layer}{words.ffn}.gate", y).softmax(-1)
        weights, chosen = shares.topk(1 if plain.is_3 else 2)
        weights = weights / weights.sum(-1, keepdim=True)
        for token in range(len(y)):
            for weight, expert in zip(weights[token], chosen[token].tolist(), strict=True):
                x[token] = x[token] + weight * swiglu(places[expert], y[token])
            for place in places[plain.experts :]:
                x[token] = x[token] + swiglu(place, y[token])
    return norm(f"{words.prefix}norm", x) @ w[words.head].T


def rotate(plain: Plain, x: Tensor, theta: float) -> Tensor:
    """Turns [T, N, H]: 2504 each pair of neighbours, the others dimension i with i + H/2."""
    half = plain.size // 2
    angles = torch.arange(len(x))[:, None] * theta ** (-torch.arange(half) / half)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    if plain.generation == "2504":
        first, second = x[..., 0::2], x[..., 1::2]
    else:
        first, second = x[..., :half], x[..., half:]
    turned = (first * cos - second * sin, first * sin + second * cos)
    if plain.generation == "2504":
        return torch.stack(turned, dim=-1).flatten(2)
    return torch.cat(turned, dim=-1)

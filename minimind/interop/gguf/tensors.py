"""Names the tensors of a GGUF file, and builds them from the tensors with Hugging Face's names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from minimind.config.model import ModelConfig
from minimind.interop.gguf.architecture import INTERLEAVED, find_architecture
from minimind.interop.rotation import to_halves, to_pairs

_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_ATTENTION = {"attn_v": "v_proj", "attn_output": "o_proj"}
_FFN = {"ffn_gate": "gate_proj", "ffn_up": "up_proj", "ffn_down": "down_proj"}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Describes one tensor of a file, and the tensors that it is made of."""

    name: str
    parts: tuple[str, ...]
    """Hugging Face's names."""
    join: Literal["one", "stack", "rows", "columns"] = "one"
    """stack: one matrix an expert; rows, columns: matrices below or beside each other."""
    heads: int = 0
    """The number of heads whose rows are reordered for an interleaved rotation; 0: none are."""
    is_fp32: bool = False
    """Norms and routers are fp32 in every file, as llama.cpp expects."""

    def build(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Makes the tensor."""
        parts = [tensors[name] for name in self.parts]
        if self.join == "stack":
            return torch.stack(parts)
        if self.join != "one":
            return torch.cat(parts, dim=0 if self.join == "rows" else 1)
        return to_pairs(parts[0], len(parts[0]) // self.heads) if self.heads else parts[0]

    def shape(self, shapes: Callable[[str], tuple[int, ...]]) -> tuple[int, ...]:
        """Gives the tensor's shape; `shapes` gives that of a part."""
        first, count = shapes(self.parts[0]), len(self.parts)
        if self.join == "stack":
            return (count, *first)
        if self.join == "one":
            return first
        rows, columns = first
        return (count * rows, columns) if self.join == "rows" else (rows, count * columns)

    def part(self, number: int, whole: Tensor) -> Tensor:
        """Gives a part of the whole tensor: the inverse of `build`."""
        if self.join == "stack":
            return whole[number]
        if self.join != "one":
            dim = 0 if self.join == "rows" else 1
            return whole.chunk(len(self.parts), dim)[number]
        return to_halves(whole, len(whole) // self.heads) if self.heads else whole


def gguf_tensors(config: ModelConfig) -> Iterator[GgufTensor]:
    """Gives the tensors of the model's file, in their order. Raises ConfigError."""
    architecture = find_architecture(config)
    yield GgufTensor("token_embd.weight", ("model.embed_tokens.weight",))
    for i in range(config.num_hidden_layers):
        yield from _block(config, architecture, f"blk.{i}.", f"model.layers.{i}.", i)
    yield GgufTensor("output_norm.weight", ("model.norm.weight",), is_fp32=True)
    if not config.tie_word_embeddings:
        yield GgufTensor("output.weight", ("lm_head.weight",))


def _block(
    config: ModelConfig, architecture: str, block: str, layer: str, number: int
) -> Iterator[GgufTensor]:
    for name, ours in _NORMS.items():
        yield GgufTensor(f"{block}{name}.weight", (f"{layer}{ours}.weight",), is_fp32=True)
    attention, mlp = f"{layer}self_attn.", f"{layer}mlp."
    for letter, heads in (("q", config.num_attention_heads), ("k", config.num_key_value_heads)):
        part = (f"{attention}{letter}_proj.weight",)
        reordered = heads if architecture in INTERLEAVED else 0
        yield GgufTensor(f"{block}attn_{letter}.weight", part, heads=reordered)
        if config.use_qk_norm:
            norm = (f"{attention}{letter}_norm.weight",)
            yield GgufTensor(f"{block}attn_{letter}_norm.weight", norm, is_fp32=True)
    for name, ours in _ATTENTION.items():
        yield GgufTensor(f"{block}{name}.weight", (f"{attention}{ours}.weight",))
    if not config.has_experts(number):
        for name, ours in _FFN.items():
            yield GgufTensor(f"{block}{name}.weight", (f"{mlp}{ours}.weight",))
        return
    yield GgufTensor(f"{block}ffn_gate_inp.weight", (f"{mlp}gate.weight",), is_fp32=True)
    shared = range(config.n_shared_experts)
    for name, ours in _FFN.items():
        experts = tuple(f"{mlp}experts.{e}.{ours}.weight" for e in range(config.num_experts))
        yield GgufTensor(f"{block}{name}_exps.weight", experts, "stack")
        if shared:
            parts = tuple(f"{mlp}shared_experts.{s}.{ours}.weight" for s in shared)
            side = "columns" if name == "ffn_down" else "rows"
            yield GgufTensor(f"{block}{name}_shexp.weight", parts, side)

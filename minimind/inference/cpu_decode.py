"""Computes the next tokens on a CPU in C++: one call per step, where PyTorch needs four hundred."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_float, c_int64, c_void_p

import torch
from minimind_kernels import backend
from torch import Tensor
from torch.nn import functional as F

from minimind.inference.cpu_library import load_library
from minimind.lora.experts import LoraExperts
from minimind.lora.linear import LoraLinear, split_parts
from minimind.model.attention import Attention
from minimind.model.cached_attention import Piece
from minimind.model.feed_forward import SwiGLU
from minimind.model.kv_cache import KVCache
from minimind.model.moe import MixtureOfExperts
from minimind.model.transformer import Transformer

_MULTIPLE, _MAX_HEAD = 16, 128
"""All sizes but the vocabulary's must be multiples of the first, a vector's length; a head may have
at most as many numbers as the second, which fit in the registers."""
_ATTENTION, _FEED_FORWARD = (Attention,), (SwiGLU, MixtureOfExperts, LoraExperts)
"""The classes whose formulas cpu_decode.cpp has."""
_COLUMNS = 32
"""The outputs of a block of weights, as in cpu_products.h."""

_MATRICES = {
    "qkv": "self_attn.qkv_proj",
    "o": "self_attn.o_proj",
    "gate_up": "mlp.gate_up_proj",
    "down": "mlp.down_proj",
    "router": "mlp.gate",
    "shared_gate_up": "mlp.shared_experts.gate_up_proj",
    "shared_down": "mlp.shared_experts.down_proj",
}
"""The linear, or the stack of all experts' weights, of each field."""
_VECTORS = {
    "input_norm": "input_layernorm.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
}


class _Linear(Structure):
    """Has the memory layout of the struct Linear in cpu_decode.cpp. The next three classes
    correspond to the structs Layer, Model and Batch."""

    _fields_ = [*((name, c_void_p) for name in ("weight", "a", "b")), ("rank", c_int64)]


class _Layer(Structure):
    _fields_ = [
        *((name, _Linear) for name in _MATRICES),
        *((name, c_void_p) for name in (*_VECTORS, "keys", "values")),
    ]


class _Model(Structure):
    _fields_ = [
        *[
            (name, c_int64)
            for name in (
                *("num_layers", "hidden", "ffn", "heads", "kv_heads", "size", "vocab"),
                *("capacity", "id_stride", "hidden_stride"),
                *("experts", "chosen", "renormalises", "expert_ffn", "shared_ffn"),
                "most_rank",
            )
        ],
        ("eps", c_float),
        ("embedding", c_void_p),
        ("head", _Linear),
        *[(name, c_void_p) for name in ("norm", "cos", "sin")],
        ("layers", POINTER(_Layer)),
    ]


class _Batch(Structure):
    _fields_ = [
        *[(name, c_int64) for name in ("num_rows", "num_wanted")],
        *[(name, POINTER(c_int64)) for name in ("ids", "positions", "slots", "wanted")],
    ]


class CpuDecode:
    """Runs `Transformer.decode` on a CPU.

    Between matrix products it computes in fp32, whatever the weights' dtype; where the CPU has an
    instruction for bf16, the inputs of products are rounded to bf16. It sums in another order than
    PyTorch, so the last digits differ. It keeps a copy of the weights in the order in which
    products read them (cpu_products.h), and notices when the model's weights change.
    """

    def __init__(self, model: Transformer, cache: KVCache) -> None:
        """Takes a model that `can_run` accepts."""
        self._model, self._cache = model, cache
        library = load_library()
        assert library is not None
        self._library = library
        self._num_switches = 0
        self._parameters: list[Tensor] = []
        self._state: list[tuple[int, int]] = []
        """The address and version of each parameter when the weights were last read."""
        self._blocks: dict[tuple[str, int, int], Tensor] = {}
        """The copies of matrices, by name, address and version of the parameter."""
        self._follow_modules()

    @staticmethod
    def can_run(model: Transformer) -> bool:
        """Tells whether this model can be decoded here and under the kernels' settings."""
        config, weight = model.config, model.lm_head.weight
        sizes = [config.hidden_size, config.intermediate_size, config.head_dim]
        if config.num_experts:
            sizes.append(config.moe_intermediate_size)
        return (
            weight.device.type == "cpu"
            and weight.dtype in (torch.float32, torch.bfloat16)
            and not any(size % _MULTIPLE for size in sizes)
            and config.head_dim <= _MAX_HEAD
            and all(
                type(block.self_attn) in _ATTENTION and type(block.mlp) in _FEED_FORWARD
                for block in model.layers
            )
            and backend.kernels_setting() != "triton"
            and backend.compile_setting() != "0"
            and load_library() is not None
        )

    def refresh(self) -> None:
        """Reads the weights anew: an optimizer changes them without changing their version."""
        self._state, self._blocks = [], {}

    def decode(
        self,
        ids: Sequence[int],
        pieces: Sequence[Piece],
        wanted: Sequence[int],
        num_switches: int = 0,
    ) -> Tensor | None:
        """Adds the pieces' tokens to the cache; gives fp32 logits [R, V] after the tokens at the
        places `wanted`. Gives None where adapters of experts are attached, which the C++ code does
        not support. `num_switches` is that of LoadedAdapters: each switch of adapters replaces
        modules of the model."""
        if num_switches != self._num_switches:
            self._num_switches = num_switches
            self._follow_modules()
        if self._adapts_experts:
            return None
        # A merged adapter, say, puts other tensors in their place.
        state = [(parameter.data_ptr(), parameter._version) for parameter in self._parameters]
        if state != self._state:
            self._read_model()
            self._state = state
        positions = itertools.chain.from_iterable(range(p.start, p.end) for p in pieces)
        slots = itertools.chain.from_iterable([p.slot] * p.count for p in pieces)
        num_rows, num_wanted = len(ids), len(wanted)
        batch = _Batch(
            num_rows,
            num_wanted,
            *((c_int64 * num_rows)(*row) for row in (ids, positions, slots)),
            (c_int64 * num_wanted)(*wanted),
        )
        logits_RV = torch.empty(num_wanted, self._described.vocab)
        self._library.decode_step(
            ctypes.byref(self._described),
            c_int64(self._model.lm_head.weight.dtype == torch.bfloat16),
            ctypes.byref(batch),
            c_void_p(logits_RV.data_ptr()),
            c_int64(torch.get_num_threads()),
        )
        return logits_RV

    def _follow_modules(self) -> None:
        self._parameters, self._state = list(self._model.parameters()), []
        self._adapts_experts = any(isinstance(m, LoraExperts) for m in self._model.modules())

    def _read_model(self) -> None:
        """Fills the struct with the addresses of all weights."""
        model, cache, config = self._model, self._cache, self._model.config
        named, modules = dict(model.named_parameters()), dict(model.named_modules())
        known, self._blocks = self._blocks, {}
        self._kept: list[Tensor] = []

        def linear(name: str) -> _Linear:
            weight = named.get(f"{name}.weight", named.get(name))
            if weight is None:
                return _Linear()
            key = name, weight.data_ptr(), weight._version
            self._blocks[key] = known[key] if key in known else _in_blocks(weight)
            address = self._blocks[key].data_ptr()
            module = modules.get(name)
            if not isinstance(module, LoraLinear):
                return _Linear(weight=address)
            a_RI, b_OR = _low_rank(module)
            self._kept += (_in_blocks(a_RI), _in_blocks(b_OR))
            a, b = (blocks.data_ptr() for blocks in self._kept[-2:])
            return _Linear(weight=address, a=a, b=b, rank=len(a_RI))

        layers = (_Layer * config.num_hidden_layers)()
        for i, (layer, cached) in enumerate(zip(layers, cache.layers, strict=True)):
            for field, name in _MATRICES.items():
                setattr(layer, field, linear(f"layers.{i}.{name}"))
            for field, name in _VECTORS.items():
                setattr(layer, field, self._vector(named.get(f"layers.{i}.{name}")))
            layer.keys, layer.values = cached.keys_SKCH.data_ptr(), cached.values_SKCH.data_ptr()
        cos, sin = cache.rope
        embedding = named["embed_tokens.weight"]
        self._described = _Model(
            num_layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            ffn=config.intermediate_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            size=config.head_dim,
            vocab=config.vocab_size,
            capacity=cache.capacity,
            eps=config.rms_norm_eps,
            id_stride=embedding.stride(0),
            hidden_stride=embedding.stride(1),
            experts=config.num_experts,
            chosen=config.num_experts_per_tok,
            renormalises=config.renormalizes_experts,
            expert_ffn=config.moe_intermediate_size,
            shared_ffn=config.n_shared_experts * config.moe_intermediate_size,
            most_rank=max(getattr(layer, field).rank for layer in layers for field in _MATRICES),
            embedding=embedding.data_ptr(),
            head=linear("embed_tokens" if config.tie_word_embeddings else "lm_head"),
            norm=self._vector(named["norm.weight"]),
            cos=cos.data_ptr(),
            sin=sin.data_ptr(),
            layers=layers,
        )

    def _vector(self, weight: Tensor | None) -> int | None:
        if weight is None:
            return None
        self._kept.append(weight.detach().float().contiguous())
        return self._kept[-1].data_ptr()


def _in_blocks(weight: Tensor) -> Tensor:
    """Copies a matrix, or one of each expert, in the order in which products read it, padded to
    whole blocks."""
    step = 2 if weight.dtype == torch.bfloat16 else 1
    padded = F.pad(weight.detach(), (0, 0, 0, -weight.shape[-2] % _COLUMNS))
    blocks = padded.reshape(-1, _COLUMNS, weight.shape[-1] // step, step)
    return blocks.transpose(1, 2).contiguous()


def _low_rank(module: LoraLinear) -> tuple[Tensor, Tensor]:
    """Joins the adapters of all parts of a fused tensor to one A [R, I] and one B [O, R], with the
    scales in B. R is padded to an even number, because bf16 products take inputs two at a time."""
    rank = sum(spec.rank for spec in module.specs)
    rank += rank % 2
    a_RI = module.weight.new_zeros(rank, module.in_features)
    b_OR = module.weight.new_zeros(module.out_features, rank)
    adapters = module.lora_A.detach(), module.lora_B.detach()
    for spec, ranks, a, b in split_parts(module.specs, *adapters):
        a_RI[ranks, spec.part.columns] = a.to(a_RI.dtype)
        b_OR[spec.part.rows, ranks] = (b * spec.scale).to(b_OR.dtype)
    return a_RI, b_OR

"""Computes the next tokens on a CPU in compiled C++: one call a step where PyTorch would need four
hundred."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import itertools
import logging
import os
import platform
import subprocess
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_float, c_int64, c_void_p
from pathlib import Path

import torch
from minimind_kernels import backend
from torch import Tensor
from torch.nn import functional as F

from minimind.model.cached_attention import Piece
from minimind.model.kv_cache import KVCache
from minimind.model.transformer import Transformer
from minimind.runtime.cache_folder import default_cache_dir
from minimind.runtime.whole_files import write_whole

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_suffix(".cpp")
_HEADERS = (SOURCE.with_name("cpu_products.h"), SOURCE.with_name("cpu_vectors.h"))
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-fPIC", "-shared", "-std=c++17")
_MULTIPLE, _MAX_HEAD = 16, 128
"""Every size except the vocabulary's must be a multiple of a vector; a head must fit the
registers."""
_COLUMNS = 32
"""The outputs of a block of weights, as in cpu_products.h."""

_MATRICES = {
    "qkv": ["self_attn.qkv_proj.weight"],
    "o": ["self_attn.o_proj.weight"],
    "gate_up": ["mlp.gate_up_proj.weight", "mlp.gate_up_proj"],
    "down": ["mlp.down_proj.weight", "mlp.down_proj"],
    "router": ["mlp.gate.weight"],
    "shared_gate_up": ["mlp.shared_experts.gate_up_proj.weight"],
    "shared_down": ["mlp.shared_experts.down_proj.weight"],
}
"""The parameter of each field, in dense layers and in those with experts."""
_VECTORS = {
    "input_norm": "input_layernorm.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
}


class _Layer(Structure):
    """Has the layout of the struct in cpu_decode.cpp; so have `_Model` and `_Batch`."""

    _fields_ = [(name, c_void_p) for name in (*_MATRICES, *_VECTORS, "keys", "values")]


class _Model(Structure):
    _fields_ = [
        *[
            (name, c_int64)
            for name in (
                *("num_layers", "hidden", "ffn", "heads", "kv_heads", "size", "vocab"),
                *("capacity", "id_stride", "hidden_stride"),
                *("experts", "chosen", "renormalises", "expert_ffn", "shared_ffn"),
            )
        ],
        ("eps", c_float),
        *[(name, c_void_p) for name in ("embedding", "head", "norm", "cos", "sin")],
        ("layers", POINTER(_Layer)),
    ]


class _Batch(Structure):
    _fields_ = [
        *[(name, c_int64) for name in ("num_rows", "num_wanted")],
        *[(name, POINTER(c_int64)) for name in ("ids", "positions", "slots", "wanted")],
    ]


class CpuDecode:
    """Runs `Transformer.decode` on a CPU.

    It computes in fp32 between the products, whatever the weights' dtype; where the CPU multiplies
    bf16, the inputs of products are rounded to it. Sums run in another order than PyTorch's, so
    results differ in their last digits. It keeps a copy of the weights in the order in which
    products read them (cpu_products.h), and notices when the model's own change.
    """

    def __init__(self, model: Transformer, cache: KVCache) -> None:
        """Takes a model that `can_run` accepts."""
        self._model, self._cache = model, cache
        library = _load_library()
        assert library is not None
        self._library = library
        self._parameters = list(model.parameters())
        self._read: list[tuple[int, int]] = []
        """Each parameter's address, and its version when it was read."""

    @staticmethod
    def can_run(model: Transformer) -> bool:
        """Tells whether this model can be decoded here and under the kernels' settings; it must
        have no adapters attached."""
        config, weight = model.config, model.lm_head.weight
        sizes = [config.hidden_size, config.intermediate_size, config.head_dim]
        if any(config.has_experts(i) for i in range(config.num_hidden_layers)):
            sizes.append(config.moe_intermediate_size)
        return (
            weight.device.type == "cpu"
            and weight.dtype in (torch.float32, torch.bfloat16)
            and not any(size % _MULTIPLE for size in sizes)
            and config.head_dim <= _MAX_HEAD
            and not any("lora_" in name for name, _ in model.named_parameters())
            and backend.kernels_setting() != "triton"
            and backend.compile_setting() != "0"
            and _load_library() is not None
        )

    def refresh(self) -> None:
        """Reads the weights anew: an optimizer changes them without changing their version."""
        self._read = []

    def decode(self, ids: Sequence[int], pieces: Sequence[Piece], wanted: Sequence[int]) -> Tensor:
        """Adds the pieces' tokens to the cache; gives fp32 logits [R, V] after the tokens at the
        places `wanted`."""
        # A merged adapter, say, puts other tensors in their place.
        state = [(parameter.data_ptr(), parameter._version) for parameter in self._parameters]
        if state != self._read:
            self._read_model()
            self._read = state
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

    def _read_model(self) -> None:
        """Fills the struct with the addresses of all weights."""
        model, cache, config = self._model, self._cache, self._model.config
        named = dict(model.named_parameters())
        self._kept: list[Tensor] = []
        layers = (_Layer * config.num_hidden_layers)()
        for i, (layer, cached) in enumerate(zip(layers, cache.layers, strict=True)):
            for field, names in _MATRICES.items():
                found = [named[path] for name in names if (path := f"layers.{i}.{name}") in named]
                setattr(layer, field, self._blocks(found[0]) if found else None)
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
            embedding=embedding.data_ptr(),
            head=self._blocks(model.lm_head.weight),
            norm=self._vector(named["norm.weight"]),
            cos=cos.data_ptr(),
            sin=sin.data_ptr(),
            layers=layers,
        )

    def _blocks(self, weight: Tensor) -> int:
        """Copies a matrix, or one of each expert, in the order in which products read it, padded to
        whole blocks."""
        step = 2 if weight.dtype == torch.bfloat16 else 1
        padded = F.pad(weight.detach(), (0, 0, 0, -weight.shape[-2] % _COLUMNS))
        blocks = padded.reshape(-1, _COLUMNS, weight.shape[-1] // step, step).transpose(1, 2)
        self._kept.append(blocks.contiguous())
        return self._kept[-1].data_ptr()

    def _vector(self, weight: Tensor | None) -> int | None:
        if weight is None:
            return None
        self._kept.append(weight.detach().float().contiguous())
        return self._kept[-1].data_ptr()


@functools.cache
def _load_library() -> ctypes.CDLL | None:
    """Loads the library, compiled once for this source, compiler and CPU into the cache folder.
    Gives None where that fails; under MINIMIND_COMPILE=1 it raises RuntimeError."""
    try:
        return ctypes.CDLL(str(_build()))
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or error
        if backend.compile_setting() == "1":
            message = f"MINIMIND_COMPILE=1, but {SOURCE.name} cannot be compiled: {reason}"
            raise RuntimeError(message) from None
        logger.info("decoding in plain PyTorch: %s cannot be compiled: %s", SOURCE.name, reason)
        return None


def _build() -> Path:
    compiler = os.environ.get("CXX") or "g++"
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    sources = [path.read_text("utf-8") for path in (SOURCE, *_HEADERS)]
    parts = (*sources, version.stdout, " ".join(_FLAGS), _cpu())
    name = hashlib.blake2b("\0".join(parts).encode(), digest_size=12).hexdigest()
    library = default_cache_dir() / "cpu_decode" / f"{name}.so"
    if not library.exists():
        with write_whole(library) as new:
            command = [compiler, *_FLAGS, str(SOURCE), "-o", str(new)]
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return library


def _cpu() -> str:
    """Describes the CPU features that -march=native uses; several machines may share a home
    folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").split("\n\n", 1)[0].splitlines()
    except OSError:
        lines = []
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join([platform.machine(), *(line for line in lines if line.startswith(wanted))])

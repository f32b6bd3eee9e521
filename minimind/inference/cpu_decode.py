"""Decodes on a CPU in compiled C++: one call per step, where PyTorch needs some four hundred."""

from __future__ import annotations

import ctypes
import functools
import hashlib
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

from minimind.model.cached_attention import Piece
from minimind.model.kv_cache import KVCache
from minimind.model.transformer import Transformer
from minimind.runtime.cache_folder import default_cache_dir
from minimind.runtime.whole_files import write_whole

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_suffix(".cpp")
_HEADER = SOURCE.with_name("cpu_vectors.h")
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-fPIC", "-shared", "-std=c++17")
_MULTIPLE, _MAX_HEAD = 16, 128
"""All sizes but the vocabulary's must be multiples of the first, a vector's length; a head may have
at most as many numbers as the second, which fit in the registers."""


_MATRICES = {
    "qkv": "self_attn.qkv_proj.weight",
    "o": "self_attn.o_proj.weight",
    "gate_up": "mlp.gate_up_proj.weight",
    "down": "mlp.down_proj.weight",
}
_VECTORS = {
    "input_norm": "input_layernorm.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
}


class _Layer(Structure):
    """Has the memory layout of the struct Layer in cpu_decode.cpp."""

    _fields_ = [(name, c_void_p) for name in (*_MATRICES, *_VECTORS, "keys", "values")]


class _Model(Structure):
    _fields_ = [
        *[
            (name, c_int64)
            for name in (
                *("num_layers", "hidden", "ffn", "heads", "kv_heads", "size", "vocab"),
                "capacity",
            )
        ],
        ("eps", c_float),
        *[(name, c_void_p) for name in ("embedding", "head", "norm", "cos", "sin")],
        ("layers", POINTER(_Layer)),
    ]


class CpuDecode:
    """Runs `Transformer.decode` on a CPU for a dense model and one new token of each sequence.

    Between matrix products it computes in fp32, whatever the weights' dtype. It sums in another
    order than PyTorch, so the last digits differ. Weights stored by columns
    (`lay_out_for_decoding`) are read in place, others are copied; changes of the weights are
    noticed.
    """

    def __init__(self, model: Transformer, cache: KVCache) -> None:
        """`model` must be one that `can_run` accepts."""
        self._model, self._cache = model, cache
        library = _load_library()
        assert library is not None
        self._library = library
        self._parameters = list(model.parameters())
        self._read: list[tuple[int, int]] = []
        """The address and version of each parameter when the weights were last read."""

    @staticmethod
    def can_run(model: Transformer) -> bool:
        """Tells whether the model can be decoded here under the kernels' settings: it must be on a
        CPU, dense, and without attached adapters."""
        config, weight = model.config, model.lm_head.weight
        sizes = (config.hidden_size, config.intermediate_size, config.head_dim)
        return (
            weight.device.type == "cpu"
            and weight.dtype in (torch.float32, torch.bfloat16)
            and not any(config.has_experts(i) for i in range(config.num_hidden_layers))
            and not any(size % _MULTIPLE for size in sizes)
            and config.head_dim <= _MAX_HEAD
            and not any("lora_" in name for name, _ in model.named_parameters())
            and backend.kernels_setting() != "triton"
            and backend.compile_setting() != "0"
            and _load_library() is not None
        )

    def refresh(self) -> None:
        """Makes the next step read the weights again. An optimizer changes them without a new
        version, so this cannot be noticed."""
        self._read = []

    def decode(self, ids: Sequence[int], pieces: Sequence[Piece]) -> Tensor | None:
        """Gives fp32 logits [B, V]; None where a piece has more than one token, which is not
        handled here."""
        if any(piece.count > 1 for piece in pieces):
            return None
        # The addresses change too: merging an adapter, for example, replaces tensors.
        state = [(parameter.data_ptr(), parameter._version) for parameter in self._parameters]
        if state != self._read:
            self._read_model()
            self._read = state
        rows = (ids, [piece.start for piece in pieces], [piece.slot for piece in pieces])
        logits_BV = torch.empty(len(ids), self._described.vocab)
        self._library.decode_step(
            ctypes.byref(self._described),
            c_int64(self._model.lm_head.weight.dtype == torch.bfloat16),
            c_int64(len(ids)),
            *((c_int64 * len(ids))(*row) for row in rows),
            c_void_p(logits_BV.data_ptr()),
            c_int64(torch.get_num_threads()),
        )
        return logits_BV

    def _read_model(self) -> None:
        """Fills the C++ struct with the addresses of all weights."""
        model, cache, config = self._model, self._cache, self._model.config
        named = dict(model.named_parameters())
        self._kept: list[Tensor] = []
        layers = (_Layer * config.num_hidden_layers)()
        for i, (layer, cached) in enumerate(zip(layers, cache.layers, strict=True)):
            for field, name in _MATRICES.items():
                setattr(layer, field, self._columns(named[f"layers.{i}.{name}"]))
            for field, name in _VECTORS.items():
                setattr(layer, field, self._vector(named.get(f"layers.{i}.{name}")))
            layer.keys, layer.values = cached.keys_SKCH.data_ptr(), cached.values_SKCH.data_ptr()
        cos, sin = cache.rope
        embedding = self._columns(named["embed_tokens.weight"])
        is_tied = config.tie_word_embeddings
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
            embedding=embedding,
            head=embedding if is_tied else self._columns(model.lm_head.weight),
            norm=self._vector(named["norm.weight"]),
            cos=cos.data_ptr(),
            sin=sin.data_ptr(),
            layers=layers,
        )

    def _columns(self, weight: Tensor) -> int:
        by_columns = weight.detach().t().contiguous()
        self._kept.append(by_columns)
        return by_columns.data_ptr()

    def _vector(self, weight: Tensor | None) -> int | None:
        if weight is None:
            return None
        self._kept.append(weight.detach().float().contiguous())
        return self._kept[-1].data_ptr()


@functools.cache
def _load_library() -> ctypes.CDLL | None:
    """Loads the library, which is compiled once per source, compiler and CPU into the cache folder.
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
    sources = [path.read_text("utf-8") for path in (SOURCE, _HEADER)]
    parts = (*sources, version.stdout, " ".join(_FLAGS), _cpu())
    name = hashlib.blake2b("\0".join(parts).encode(), digest_size=12).hexdigest()
    library = default_cache_dir() / "cpu_decode" / f"{name}.so"
    if not library.exists():
        with write_whole(library) as new:
            command = [compiler, *_FLAGS, str(SOURCE), "-o", str(new)]
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return library


def _cpu() -> str:
    """Describes the CPU features that -march=native uses, since several machines may share a home
    folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").split("\n\n", 1)[0].splitlines()
    except OSError:
        lines = []
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join([platform.machine(), *(line for line in lines if line.startswith(wanted))])

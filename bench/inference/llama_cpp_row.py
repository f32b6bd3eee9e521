"""Runs llama.cpp in the process of a row of bench.inference, through llama-cpp-python, which pip
compiles for the machine's own processor."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from minimind.errors import ConfigError
from minimind.interop.conversion import convert
from minimind.interop.options import ConvertOptions

if TYPE_CHECKING:
    from bench.inference.rows import InferenceSpec, Prompts

NAME = "llama.cpp"
_FILE = "model.gguf"
_QUANTIZATIONS = {torch.bfloat16: "bf16", torch.float32: "f32"}
_CELLS = 256
"""llama.cpp allocates the cache of a sequence in multiples of so many tokens."""


def prepare(folder: Path, dtype: torch.dtype, device: torch.device) -> None:
    """Writes the weights in `folder` as the GGUF file that the row reads. Raises ConfigError where
    llama.cpp is not installed, or the other rows run on a GPU."""
    if device.type != "cpu":
        raise ConfigError(f"--rows {NAME}: it runs on a CPU, the other rows on {device}")
    if importlib.util.find_spec("llama_cpp") is None:
        raise ConfigError(f"--rows {NAME} needs llama.cpp: pip install llama-cpp-python")
    convert(folder, "gguf", folder / _FILE, ConvertOptions(quantize=_QUANTIZATIONS[dtype]))


class LlamaCppRow:
    """Decodes greedily, one token of every sequence per step, with llama.cpp's defaults, such as an
    fp16 cache."""

    def __init__(self, spec: InferenceSpec) -> None:
        self._lib: Any = importlib.import_module("llama_cpp")
        self._quiet = _silence(self._lib)
        self._new_tokens = spec.new_tokens
        tokens = spec.prompt_tokens + spec.new_tokens
        params = self._lib.llama_model_default_params()
        path = str(spec.folder / _FILE).encode()
        self._model = self._lib.llama_model_load_from_file(path, params)
        context = self._lib.llama_context_default_params()
        context.n_seq_max = spec.batch
        context.n_ctx = spec.batch * _CELLS * -(-tokens // _CELLS)
        context.n_batch = spec.batch * spec.prompt_tokens
        context.n_threads = context.n_threads_batch = torch.get_num_threads()
        self._context = self._lib.llama_init_from_model(self._model, context)
        if not self._model or not self._context:
            raise RuntimeError(f"llama.cpp cannot load {spec.folder / _FILE}")
        vocab = self._lib.llama_model_get_vocab(self._model)
        self._vocab_size = self._lib.llama_vocab_n_tokens(vocab)
        self._batch = self._lib.llama_batch_init(context.n_batch, 0, 1)

    def generate(self, prompts: Prompts) -> tuple[list[list[int]], list[list[float]]]:
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        ids: list[list[int]] = [[] for _ in prompts]
        times: list[float] = []
        given = prompts
        for step in range(self._new_tokens):
            start = 0 if step == 0 else len(prompts[0]) + step - 1
            for sequence, token in enumerate(self._decode(given, start)):
                ids[sequence].append(token)
            times.append(time.perf_counter())
            given = [[one[-1]] for one in ids]
        return ids, [times] * len(prompts)

    def _decode(self, given: Sequence[Sequence[int]], start: int) -> list[int]:
        """Feeds tokens of every sequence from position `start` on; gives the likeliest next."""
        batch, count, last = self._batch, 0, []
        for sequence, tokens in enumerate(given):
            for place, token in enumerate(tokens):
                batch.token[count] = token
                batch.pos[count] = start + place
                batch.n_seq_id[count] = 1
                batch.seq_id[count][0] = sequence
                batch.logits[count] = place == len(tokens) - 1
                count += 1
            last.append(count - 1)
        batch.n_tokens = count
        if failed := self._lib.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode gave {failed}")
        return [int(self._logits(place).argmax()) for place in last]

    def _logits(self, place: int) -> np.ndarray:
        pointer = self._lib.llama_get_logits_ith(self._context, place)
        return np.ctypeslib.as_array(pointer, (self._vocab_size,))


def _silence(lib: Any) -> Callable[..., None]:
    """Keeps llama.cpp from writing its log. The caller must keep a reference to the result as long
    as llama.cpp runs."""

    @lib.llama_log_callback
    def ignore(level: int, text: bytes, user_data: Any) -> None:
        pass

    lib.llama_log_set(ignore, ctypes.c_void_p(0))
    return ignore

"""Serves GGUF files by llama.cpp itself, in this process."""

from __future__ import annotations

import gc
import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class LlamaCpp:
    """Asks llama.cpp's server in this process."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def ask(self, route: str, **body: Any) -> Any:
        request = urllib.request.Request(
            self._server.listening_address + route,
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)

    def complete(self, prompt: list[int], num_tokens: int, num_probs: int = 0) -> Any:
        return self.ask(
            "/completion",
            prompt=prompt,
            n_predict=num_tokens,
            n_probs=num_probs,
            temperature=0,
            cache_prompt=False,
            return_tokens=True,
        )


@contextmanager
def serving(path: Path) -> Iterator[LlamaCpp]:
    """Serves a file by llama.cpp, with an fp32 cache."""
    import xllamacpp as llama_cpp  # here, so that tests can skip where it is missing

    params = llama_cpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.n_gpu_layers = 1024, 1, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = llama_cpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = llama_cpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.warmup, params.verbosity, params.port, params.use_jinja = False, 0, 0, True
    server = llama_cpp.Server(params)
    try:
        yield LlamaCpp(server)
    finally:
        del server
        gc.collect()

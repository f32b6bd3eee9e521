"""Trains tiny language models, from raw text to a chat server.

`train(stage=…, …)` trains a model and `LLM(checkpoint)` generates with it: what `minimind train`
and `minimind chat` do, from Python. PyTorch is not imported before one of the two is used.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minimind.llm import LLM
    from minimind.run import train

__all__ = ["LLM", "__version__", "train"]

__version__ = "0.1.0"

_HOMES = {"LLM": "minimind.llm", "train": "minimind.run"}

# Measuring peak memory on a CPU starts PyTorch's profiler, whose C++ code prints to stderr.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

# Waiting threads sleep instead of spinning: as fast on an idle machine, and many times faster where
# other programs need the cores. Read when PyTorch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# PyTorch and oneDNN each keep 1,024 compiled bf16 products for good, 0.3 MB for each shape. Packed
# documents and answers have new shapes in every step; 256 hold those that come back.
os.environ.setdefault("LRU_CACHE_CAPACITY", "256")
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""MiniMind trains tiny language models from raw text to a chat server."""

import os

__version__ = "0.1.0"

# Measuring a CPU's peak memory starts PyTorch's profiler, whose C++ parts talk on stderr.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

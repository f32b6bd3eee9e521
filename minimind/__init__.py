"""MiniMind trains tiny language models from raw text to a chat server."""

import os

__version__ = "0.1.0"

# Measuring a CPU's peak memory starts PyTorch's profiler, whose C++ parts talk on stderr.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

# Threads that wait for work sleep instead of spinning: as quick on an idle machine, and many times
# quicker on one whose cores other programs want too. Read when PyTorch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

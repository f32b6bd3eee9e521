"""Reads and writes GGUF, the one-file format of llama.cpp and Ollama
(github.com/ggml-org/ggml/blob/master/docs/gguf.md). The modules import the package `gguf` on first
use."""

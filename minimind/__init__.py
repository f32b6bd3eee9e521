"""MiniMind trains tiny language models from raw text to a chat server."""

__version__ = "0.1.0"

"""A server of its own for a test."""

from live_servers import serve

__all__ = ["serve"]

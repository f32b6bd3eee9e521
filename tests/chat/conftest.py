"""Provides a server for one test."""

from live_servers import serve

__all__ = ["serve"]

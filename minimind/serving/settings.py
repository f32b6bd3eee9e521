"""Defines how a server behaves: who may use it, and how much of it."""

from __future__ import annotations

import ipaddress
import math
import re
from dataclasses import dataclass

from minimind.errors import ConfigError

_LOCAL_DOMAINS = (".localhost", ".local", ".internal", ".home.arpa")
"""Domains that are reserved for local networks (RFC 6761, 6762, 8375, ICANN 2024)."""
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s@*]+", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes a free port."""
    api_keys: tuple[str, ...] = ()
    """The keys that clients may use; without any, everyone may call the server."""
    allow_no_key: bool = False
    """True allows the server to listen beyond this machine without a key."""
    max_body_bytes: int = 4 << 20
    max_new_tokens: int = 4096
    max_calls: int = 256
    """The most calls in progress at once, over all models."""
    max_waiting: int = 128
    """The most generations per model that wait for a cache slot."""
    body_timeout_s: float = 30.0
    """The time in which a client must send a request's head, and again for its body."""
    send_timeout_s: float = 30.0
    """The time in which a client must take the next piece of its answer."""
    answer_timeout_s: float = 600.0
    shutdown_s: float = 30.0
    """The time that running answers have to end after SIGTERM; then they are cut off."""
    log_prompts: bool = False
    cors_origins: tuple[str, ...] = ()
    """The origins whose web pages may call the server from a browser; "*" allows all."""
    allowed_hosts: tuple[str, ...] = ()
    """Names by which clients may call a server without a key, besides those of `accepts_host`."""
    parse_special: bool = False
    """True: special tokens in prompts of /v1/completions are read as tokens, unless a request says
    otherwise."""

    def check(self) -> None:
        """Raises ConfigError where the settings cannot be used, or would open the server to the
        network by mistake."""
        for name in ("max_body_bytes", "max_new_tokens", "max_calls", "max_waiting"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("body_timeout_s", "send_timeout_s", "answer_timeout_s", "shutdown_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be above 0 and finite")
        if not 0 <= self.port < 65536:
            raise ConfigError(f"port is {self.port}; it must be from 0 to 65535")
        for origin in self.cors_origins:
            if origin not in ("*", "null") and not _ORIGIN.fullmatch(origin):
                raise ConfigError(
                    f"cors_origin {origin!r} is no origin: give scheme, host and port alone, as in "
                    "http://localhost:3000, or * for all"
                )
        if any(not key or not key.isascii() or key != key.strip() for key in self.api_keys):
            raise ConfigError("an API key is empty, not ASCII or has white space around it")
        if not (self.api_keys or self.allow_no_key or _is_loopback(self.host)):
            raise ConfigError(
                f"host {self.host} can be reached from other machines and there is no API key: "
                "give one in a file (--api_key_file) or MINIMIND_API_KEY, or say --allow_no_key"
            )

    def accepts_host(self, header: str) -> bool:
        """Tells whether a call's Host header names this server. A web page can let its own domain's
        name point to this machine and then call the server as if it were the page's own. So without
        a key a name must be one that no stranger can register: an address, a name without a dot,
        `host`, one that is reserved for local networks, or one of `allowed_hosts`."""
        name = header.strip().lower()
        name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
        name = name.removesuffix(".")
        if self.api_keys or "." not in name or name in (self.host.lower(), *self.allowed_hosts):
            return True
        return name.endswith(_LOCAL_DOMAINS) or _read_address(name) is not None


def _is_loopback(host: str) -> bool:
    address = _read_address(host)
    return address.is_loopback if address else host == "localhost"


def _read_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None

"""Lets the ranks of a run find one another, and keeps out ranks of other runs.

The ranks meet at a store, which rank 0 (or torchrun's agent) serves at MASTER_ADDR:MASTER_PORT. The
`deepspeed` launcher gives every run of a machine the same port. Without a check, ranks of a second
run would join the store of the first.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence

import psutil
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from minimind.errors import ConfigError
from minimind.runtime.machine import boot_id
from minimind.runtime.ranks import Ranks, free_port

JOIN_S = 600
"""How long a rank waits for rank 0's store."""
_TRY_S, _TRY_AGAIN_S = 10.0, 0.3
_ANSWER_S = 60
"""How long a rank waits for a store that it has reached to say which run it belongs to."""


def open_store(ranks: Ranks) -> Store:
    """Gives a store that only the ranks of this run share. Raises ConfigError where rank 0 cannot
    listen on its port, where no process listens on it, and where another run's process does."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    serves = ranks.is_main and not _agent_serves()
    if ranks.local_world_size < ranks.world_size and (name := find_interface(host)):
        # Gloo would take the interface of this host's name, which is often the loopback.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    if ranks.world_size == 1 and serves:
        host, port = "127.0.0.1", 0  # no other rank has to find it, so any free port will do
    store = _connect(host, port, serves=serves)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    mine = PrefixStore(f"minimind/{attempt}", store)
    identity = run_identity(ranks, os.environ, sys.argv)
    if ranks.is_main:
        mine.set("run", identity)
    _check_run(mine, identity, ranks, f"{host}:{port}")
    return mine


def run_identity(ranks: Ranks, environment: Mapping[str, str], argv: Sequence[str]) -> str:
    """Gives a text that is the same on all ranks of a run. Another run has another text, as far as
    the launcher tells runs apart: torchrun by its run id, `deepspeed` by its process on one machine
    and by the command on several."""
    parts: list[object] = [ranks.world_size]
    if run_id := environment.get("TORCHELASTIC_RUN_ID"):
        parts += ["torchrun", run_id]
    elif nodes := environment.get("CROSS_SIZE"):
        flags = [text for text in argv[1:] if not text.startswith("--local_rank")]
        parts += ["deepspeed", hashlib.sha256(json.dumps(flags).encode()).hexdigest()]
        if nodes == "1":
            parts += [boot_id(), os.getppid()]
    return json.dumps(parts)


def find_interface(host: str) -> str | None:
    """Finds the network interface through which this machine reaches `host`, or the one that has
    the address `host`. Gives None where it finds none."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # sends nothing
            own = probe.getsockname()[0]
    except OSError:
        return None
    interfaces = psutil.net_if_addrs()
    return next((name for name, all in interfaces.items() if own in [a.address for a in all]), None)


def _agent_serves() -> bool:
    """Tells whether torchrun's agent serves the store."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _connect(host: str, port: int, *, serves: bool) -> TCPStore:
    if not serves:
        _wait_for_server(host, port)
    limit = datetime.timedelta(seconds=JOIN_S)
    try:
        return TCPStore(host, port, is_master=serves, wait_for_workers=False, timeout=limit)
    except dist.DistError as error:
        reason = "another run has it" if "EADDRINUSE" in str(error) else str(error).split("\n")[0]
        if serves:
            raise ConfigError(
                f"port {port}, where the ranks of this run would meet, cannot be listened at "
                f"({reason}). {_another_port()}"
            ) from None
        raise ConfigError(f"what answers at {host}:{port} is no store: {reason}") from None


def _wait_for_server(host: str, port: int) -> None:
    """Returns when a process listens. PyTorch's own client would log a C++ trace after every failed
    attempt."""
    until = time.monotonic() + JOIN_S
    while True:
        try:
            socket.create_connection((host, port), timeout=_TRY_S).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise ConfigError(
                    f"nobody answered at {host}:{port}, where rank 0 should be, for {JOIN_S} s "
                    f"({error}): is rank 0 running, is {host} its address, and does a firewall let "
                    "the port through?"
                ) from None
        time.sleep(_TRY_AGAIN_S)


def _check_run(store: Store, identity: str, ranks: Ranks, where: str) -> None:
    # An agent's store answers before rank 0 has come to say which run it is.
    limit_s = JOIN_S if _agent_serves() else _ANSWER_S
    store.set_timeout(datetime.timedelta(seconds=limit_s))
    try:
        theirs = store.get("run").decode()
    except dist.DistError:
        if _agent_serves():
            raise ConfigError(
                f"rank 0 has not come to {where}, where the ranks meet, for {JOIN_S} s: is it "
                "running?"
            ) from None
        raise ConfigError(
            f"what answers at {where} is no store of this run: another program has the port. "
            f"{_another_port()}"
        ) from None
    if theirs != identity:
        raise ConfigError(f"the ranks of another run meet at {where}. {_another_port()}")
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ  # it may start a rank several times
    if not by_torchrun and store.add(f"rank {ranks.rank}", 1) > 1:
        raise ConfigError(
            f"rank {ranks.rank} has joined at {where} already: another run with as many ranks "
            f"meets there. {_another_port()}"
        )


def _another_port() -> str:
    return (
        "Give the launcher another port, before its other arguments: "
        f"deepspeed --master_port {free_port()} ..."
    )

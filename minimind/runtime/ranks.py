"""Tells a process its rank in a run, from the launcher's environment variables."""

from __future__ import annotations

import contextlib
import os
import random
import socket
from dataclasses import dataclass

from minimind.errors import ConfigError

_PORTS = range(20_000, 32_000)
"""Ports below those that Linux gives to outgoing connections (from 32,768 on), so that no other
program takes one between the check and its use."""
_TRIED_PORTS = 100


@dataclass(frozen=True, slots=True)
class Ranks:
    rank: int
    local_rank: int
    world_size: int

    @property
    def local_world_size(self) -> int:
        """Gives the number of ranks on this machine, for which torchrun and deepspeed set different
        variables."""
        names = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")
        return int(next((os.environ[n] for n in names if n in os.environ), self.world_size))

    @property
    def is_main(self) -> bool:
        """Tells whether this is rank 0, which alone prints, logs and writes files that are not
        sharded."""
        return self.rank == 0


def read_ranks(local_rank: int | None = None) -> Ranks:
    """Reads RANK, LOCAL_RANK and WORLD_SIZE as `deepspeed` and `torchrun` set them; gives a single
    rank without them."""
    rank = int(os.environ.get("RANK", 0))
    local = int(os.environ.get("LOCAL_RANK", local_rank if local_rank is not None else 0))
    return Ranks(rank, local, int(os.environ.get("WORLD_SIZE", 1)))


def complete_environment(ranks: Ranks) -> None:
    """Sets the environment variables that DeepSpeed needs to start, where no launcher set them.
    Without them DeepSpeed looks for MPI."""
    os.environ.setdefault("RANK", str(ranks.rank))
    os.environ.setdefault("LOCAL_RANK", str(ranks.local_rank))
    os.environ.setdefault("WORLD_SIZE", str(ranks.world_size))
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(free_port())


def free_port() -> int:
    """Finds a port on which no process listens, for the ranks of a run to meet. It is drawn at
    random, so that runs started at the same time choose different ones. Raises ConfigError."""
    # Not from the global generator: runs with the same seed would draw the same port.
    for port in random.SystemRandom().sample(_PORTS, _TRIED_PORTS):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port
    raise ConfigError(
        f"no free port among {_TRIED_PORTS} of {_PORTS.start} to {_PORTS.stop - 1}: "
        "give one in the environment variable MASTER_PORT"
    )

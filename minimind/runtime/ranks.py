"""Tells a process its rank in a run; only reads the launcher's environment."""

from __future__ import annotations

import contextlib
import os
import random
import socket
from dataclasses import dataclass

from minimind.errors import ConfigError

_PORTS = range(20_000, 32_000)
"""The range of ports lies below the one that Linux gives to outgoing connections (from 32,768):
another program might take one of those between our check and our use."""
_TRIED_PORTS = 100


@dataclass(frozen=True, slots=True)
class Ranks:
    rank: int
    local_rank: int
    world_size: int

    @property
    def local_world_size(self) -> int:
        """Gives the number of ranks on this machine: torchrun and the deepspeed launcher name it
        differently."""
        names = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")
        return int(next((os.environ[n] for n in names if n in os.environ), self.world_size))

    @property
    def is_main(self) -> bool:
        """Tells whether this is the one rank that prints, logs and writes the files that are not
        sharded."""
        return self.rank == 0


def read_ranks(local_rank: int | None = None) -> Ranks:
    """Reads RANK, LOCAL_RANK and WORLD_SIZE as `deepspeed` and `torchrun` set them; one rank
    without."""
    rank = int(os.environ.get("RANK", 0))
    local = int(os.environ.get("LOCAL_RANK", local_rank if local_rank is not None else 0))
    return Ranks(rank, local, int(os.environ.get("WORLD_SIZE", 1)))


def complete_environment(ranks: Ranks) -> None:
    """Sets the variables that DeepSpeed's start needs where no launcher did: without them it wants
    MPI."""
    os.environ.setdefault("RANK", str(ranks.rank))
    os.environ.setdefault("LOCAL_RANK", str(ranks.local_rank))
    os.environ.setdefault("WORLD_SIZE", str(ranks.world_size))
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(free_port())


def check_port(ranks: Ranks) -> None:
    """Raises ConfigError where the first rank cannot listen at the port that a launcher gave the
    ranks to meet at. torchrun listens there itself."""
    if not ranks.is_main or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return
    port = int(os.environ["MASTER_PORT"])
    with socket.socket() as probe:
        # As PyTorch listens: a connection of a run that has just ended is not in the way.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise ConfigError(
                f"port {port}, where the ranks of this run would meet, cannot be listened at "
                f"({error.strerror}): another run has it. Give the launcher another one, before "
                f"its other arguments: deepspeed --master_port {free_port()} ..."
            ) from None


def free_port() -> int:
    """Finds a port that nobody listens on here, for a run's ranks to meet at. It is drawn at
    random, so that runs which start at one time do not all find the same one. Raises
    ConfigError."""
    # Not the global generator: a run that seeded it would draw the port of every other such run.
    for port in random.SystemRandom().sample(_PORTS, _TRIED_PORTS):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port
    raise ConfigError(
        f"no free port among {_TRIED_PORTS} of {_PORTS.start} to {_PORTS.stop - 1}: "
        "give one in the environment variable MASTER_PORT"
    )

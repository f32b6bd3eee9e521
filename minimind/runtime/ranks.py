"""Who this process is among the ranks of a run; reads the launcher's environment, no more."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ranks:
    rank: int
    local_rank: int
    world_size: int

    @property
    def local_world_size(self) -> int:
        """Ranks on this machine: torchrun and the deepspeed launcher name it differently."""
        names = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")
        return int(next((os.environ[n] for n in names if n in os.environ), self.world_size))

    @property
    def is_main(self) -> bool:
        """The one rank that prints, logs and writes what is not sharded."""
        return self.rank == 0


def read_ranks(local_rank: int | None = None) -> Ranks:
    """RANK, LOCAL_RANK and WORLD_SIZE as `deepspeed` and `torchrun` set them; one rank without."""
    rank = int(os.environ.get("RANK", 0))
    local = int(os.environ.get("LOCAL_RANK", local_rank if local_rank is not None else 0))
    return Ranks(rank, local, int(os.environ.get("WORLD_SIZE", 1)))


def complete_environment(ranks: Ranks) -> None:
    """Sets what DeepSpeed's start asks for where no launcher did: without it, it wants MPI."""
    os.environ.setdefault("RANK", str(ranks.rank))
    os.environ.setdefault("LOCAL_RANK", str(ranks.local_rank))
    os.environ.setdefault("WORLD_SIZE", str(ranks.world_size))
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    if "MASTER_PORT" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            os.environ["MASTER_PORT"] = str(probe.getsockname()[1])

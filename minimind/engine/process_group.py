"""Starts and ends the process group, in which the ranks of a run compute together."""

from __future__ import annotations

import contextlib
import datetime
import time

import torch
import torch.distributed as dist

from minimind.engine.deepspeed_engine import import_deepspeed
from minimind.runtime.devices import Device
from minimind.runtime.ranks import Ranks, complete_environment
from minimind.runtime.rendezvous import open_store

HEAD_START_S = 5.0
"""How long the other ranks wait for the main rank to report why a run failed, where it cannot tell
them that it has done so."""
_ENDS_WITHIN = datetime.timedelta(minutes=6)
"""A little longer than a run waits for its monitors."""
_ENDS_KEY = "minimind/main rank ends"


def start_ranks(ranks: Ranks, device: Device) -> None:
    """Joins this rank with the others. Raises ConfigError where they cannot connect."""
    complete_environment(ranks)
    if device.kind == "gpu":
        torch.cuda.set_device(device.torch_device)
    deepspeed = import_deepspeed(device)
    if dist.is_initialized():
        return
    on_gpu = device.kind == "gpu" and ranks.world_size > 1
    # Rank 0 may tokenise the data for a long time while the others wait. Ranks that are lost are
    # noticed sooner, by minimind.runtime.heartbeat.
    limit = datetime.timedelta(hours=2)
    store = open_store(ranks)
    store.set_timeout(limit)  # NCCL waits in the store for the ids of groups
    dist.init_process_group(
        deepspeed.accelerator.get_accelerator().communication_backend_name(),
        store=store,
        rank=ranks.rank,
        world_size=ranks.world_size,
        timeout=limit,
        device_id=device.torch_device if on_gpu else None,
    )
    deepspeed.init_distributed(verbose=False)


def end_after_main(ranks: Ranks) -> None:
    """Lets the main rank of a failed run end first: the main rank reports the error and closes the
    monitors, and a launcher ends all ranks as soon as one has ended. Every rank calls it before it
    ends."""
    if not dist.is_initialized() or ranks.world_size == 1:
        if not ranks.is_main:
            time.sleep(HEAD_START_S)
        return
    with contextlib.suppress(dist.DistError):  # the store is gone, and the main rank with it
        store = dist.distributed_c10d._get_default_store()
        if ranks.is_main:
            store.set(_ENDS_KEY, "")
        else:
            store.wait([_ENDS_KEY], _ENDS_WITHIN)


def stop_ranks() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()

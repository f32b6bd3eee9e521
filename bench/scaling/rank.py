"""Runs as one rank of bench.scaling, started by DeepSpeed's launcher, and times a training run.

The run is that of `minimind train` with the same flags. Its steps are taken one by one, without
validation, samples and checkpoints. All flags that are not known here are the run's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bench.train.documents import packed_step
from bench.train.figures import causal_flops
from bench.train.step_parts import StepParts
from bench.workers import peak_resident, reset_peak_resident
from minimind.engine.process_group import stop_ranks
from minimind.engine.stage import Loader
from minimind.errors import MiniMindError
from minimind.run.arguments import parse_arguments
from minimind.run.run import Run
from minimind.runtime.devices import Device, find_device
from minimind.runtime.logging import set_up_logging
from minimind.runtime.ranks import Ranks, read_ranks

MEMORY_STEP = 1
"""The step whose memory is measured is the second, as in training: lazy initialisation is over."""
_LINK_BYTES = {"cpu": 1 << 25, "gpu": 1 << 28}
_LINK_ROUNDS = 7
_WATCHED_STEPS = 2
"""The steps after the timed ones that are split into parts."""


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--local_rank", type=int)
    parser.add_argument("--timed_steps", type=int, required=True)
    parser.add_argument("--warmup_steps", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options, train_flags = parser.parse_known_args()
    ranks = read_ranks(options.local_rank)
    set_up_logging(ranks.rank)
    device = find_device(ranks.local_rank)
    if device.kind == "cpu":
        _take_cores(ranks.local_rank, options.threads)
    try:
        found = measure(options, train_flags, ranks, device)
    except MiniMindError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        stop_ranks()
    if ranks.is_main:
        options.output.write_text(json.dumps(found), encoding="utf-8")
    return 0


def _take_cores(local_rank: int, threads: int) -> None:
    """Gives every rank the same number of threads at each number of ranks, on separate cores where
    there are enough. Without this, one rank alone would have the whole machine, and scaling would
    look poor."""
    torch.set_num_threads(threads)
    cores = sorted(os.sched_getaffinity(0))
    mine = cores[local_rank * threads : (local_rank + 1) * threads]
    if len(mine) == threads:
        os.sched_setaffinity(0, mine)


def measure(
    options: argparse.Namespace, train_flags: list[str], ranks: Ranks, device: Device
) -> dict[str, Any]:
    """Gives the results of all ranks; every rank gets the same."""
    num_steps = options.warmup_steps + options.timed_steps + _WATCHED_STEPS
    flags = [*train_flags, "--max_steps", str(num_steps)]
    run = Run.on(parse_arguments(flags), ranks, device).build()
    mine = take_steps(run, options.warmup_steps, options.timed_steps)
    link = measure_link(device, ranks.world_size)
    by_rank: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(by_rank, mine)
    resolved = run.resolved
    num_tokens = sum(sum(rank["num_tokens"]) for rank in by_rank)
    return {
        "world_size": ranks.world_size,
        "model": resolved.model_name,
        "parameters": resolved.config.num_parameters,
        "ds_config": Path(resolved.arguments.get("ds_config")).name,
        "resolved_ds_config": resolved.ds_config,
        "seq_len": resolved.seq_len,
        "micro_batch": resolved.micro_batch_size,
        "flops_per_token": resolved.flops_per_token,
        "flops_per_token_causal": causal_flops(
            resolved.config, sum(rank["attended"] for rank in by_rank) / num_tokens
        ),
        "threads": torch.get_num_threads(),
        "link": link,
        "ranks": by_rank,
    }


def take_steps(run: Run, warmup: int, timed: int) -> dict[str, Any]:
    """Takes the run's steps: warm-up, timed steps and some watched steps. Gives this rank's times,
    sizes and peaks of the timed steps, and the parts of the watched steps. The timed steps run
    ahead of a GPU, as in training."""
    loop, device = run.loop, run.resolved.device.torch_device
    loop.loader = loader = WaitedLoader(loop.loader)
    for step in range(warmup):
        with loop.memory.measured() if step == MEMORY_STEP else contextlib.nullcontext():
            run.step()
    reset_peak_resident()
    seconds, measured = [], range(warmup, warmup + timed)
    for step in measured:
        start = time.perf_counter()
        run.step_ahead()
        if step == measured[-1] and device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    resident, waits = peak_resident(), loader.waits[warmup : warmup + timed]
    parts = StepParts(loop.engine.module, device)
    for _ in range(_WATCHED_STEPS):
        with parts:
            run.step()
    parts.seconds["data_wait"] = statistics.median(waits) * _WATCHED_STEPS
    steps = [packed_step(run.loader.batches(step)) for step in measured]
    on_gpu = device.type == "cuda"
    return {
        "step_seconds": seconds,
        "num_tokens": [step.num_tokens for step in steps],
        "attended": sum(step.attended for step in steps),
        "peak_bytes": loop.memory.peak_bytes,
        "peak_reserved_bytes": torch.cuda.max_memory_reserved(device) if on_gpu else None,
        "peak_resident_bytes": resident,
        **parts.to_dict(_WATCHED_STEPS),
    }


class WaitedLoader:
    """Reads a run's own data, and records for how many seconds the loop waited for each step's
    batches."""

    def __init__(self, loader: Loader[Any]) -> None:
        self.fingerprint, self.describe = loader.fingerprint, loader.describe
        self.waits: list[float] = []
        self._loader = loader

    def read(self, from_step: int, to_step: int, pin: bool = False) -> Iterator[list[Any]]:
        asked = time.perf_counter()
        for batches in self._loader.read(from_step, to_step, pin):
            self.waits.append(time.perf_counter() - asked)
            yield batches
            asked = time.perf_counter()


def measure_link(device: Device, world_size: int) -> dict[str, float] | None:
    """Gives the bytes per second that a rank sends in an all-reduce, and the seconds of the
    smallest all-reduce; None with one rank."""
    if world_size == 1:
        return None
    seconds = {}
    for num_bytes in (4, _LINK_BYTES[device.kind]):
        values = torch.zeros(num_bytes // 4, device=device.torch_device)
        rounds = []
        for _ in range(_LINK_ROUNDS):
            dist.barrier()
            start = time.perf_counter()
            dist.all_reduce(values)
            if device.kind == "gpu":
                torch.cuda.synchronize(device.torch_device)
            rounds.append(time.perf_counter() - start)
        seconds[num_bytes] = statistics.median(rounds)
    latency_s, whole_s = seconds.values()
    sent = 2 * (world_size - 1) / world_size * _LINK_BYTES[device.kind]
    return {"bytes_per_s": sent / (whole_s - latency_s), "latency_s": latency_s}


if __name__ == "__main__":
    sys.exit(main())

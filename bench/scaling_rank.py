"""One rank of bench.scaling, started by DeepSpeed's launcher: a training run that is timed.

It is the run of launch/train.py with the same flags: same loop, loader and engine, without
validation, samples and checkpoints. All unknown flags are that run's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bench.resolved import resolve_flags
from bench.step_parts import StepParts
from bench.workers import peak_resident, reset_peak_resident
from minimind.data.loader import PackedLoader
from minimind.engine.deepspeed_engine import DeepSpeedEngine, broadcast, start_ranks, stop_ranks
from minimind.engine.loop import Events, Loop
from minimind.engine.progress import Progress
from minimind.engine.stage import BuildContext
from minimind.errors import MiniMindError
from minimind.run.inputs import build_loaders
from minimind.run.resolve import ResolvedRun, find_tokenizer
from minimind.runtime.devices import Device, find_device
from minimind.runtime.logging import set_up_logging
from minimind.runtime.ranks import Ranks, read_ranks
from minimind.stages import STAGES
from minimind.types import Batch

_LINK_BYTES = {"cpu": 1 << 25, "gpu": 1 << 28}
_LINK_ROUNDS = 7
_WATCHED_STEPS = 2
"""After the timed ones, for the parts of a step."""


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
    """As many threads for each rank at every count of ranks, on cores of its own where there are
    enough: else one rank alone would have the whole machine, and scaling would look poor."""
    torch.set_num_threads(threads)
    cores = sorted(os.sched_getaffinity(0))
    mine = cores[local_rank * threads : (local_rank + 1) * threads]
    if len(mine) == threads:
        os.sched_setaffinity(0, mine)


def measure(
    options: argparse.Namespace, train_flags: list[str], ranks: Ranks, device: Device
) -> dict[str, Any]:
    """What all ranks found, on each of them."""
    run = resolve_flags(train_flags, ranks, device)
    tokenizer = find_tokenizer(run.arguments)
    start_ranks(ranks, device)
    if not ranks.is_main:  # rank 0 fills the token cache
        broadcast(None)
    loader, _ = build_loaders(run, tokenizer, ranks)
    if ranks.is_main:
        broadcast(None)
    link = measure_link(device, ranks.world_size)
    policy = STAGES[run.stage](run.recipe).build_models(BuildContext(config=run.config)).policy
    policy.to(device.torch_device)
    engine = DeepSpeedEngine(policy, run.ds_config, run.recipe, device, ranks)
    timed = TimedLoader(loader, engine, options.warmup_steps, options.timed_steps)
    loop = build_loop(run, engine, timed, ranks)
    loop.run()
    mine = timed.results() | {"peak_bytes": loop.memory.peak_bytes, "host": platform.node()}
    heads = run.config.num_hidden_layers * run.config.num_attention_heads
    by_rank: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(by_rank, mine)
    return {
        "world_size": ranks.world_size,
        "model": run.model_name,
        "parameters": run.config.num_parameters,
        "ds_config": Path(run.arguments.get("ds_config")).name,
        "resolved_ds_config": run.ds_config,
        "seq_len": run.seq_len,
        "micro_batch": run.micro_batch_size,
        "flops_per_token": run.flops_per_token,
        "flops_per_token_unattended": 6 * run.config.num_active_parameters,
        "flops_per_attended": 12 * heads * run.config.head_dim,
        "padding_share": loader.padding_share,
        "threads": torch.get_num_threads(),
        "link": link,
        "ranks": by_rank,
    }


def build_loop(
    run: ResolvedRun, engine: DeepSpeedEngine, timed: TimedLoader, ranks: Ranks
) -> Loop[Batch]:
    def nothing(*_: object) -> None:
        pass

    return Loop(
        stage=STAGES[run.stage](run.recipe),
        engine=engine,
        loader=timed,
        recipe=run.recipe,
        learning_rate=None if engine.has_scheduler else lambda step: run.learning_rate,
        total_steps=timed.total_steps,
        events=Events(record=nothing, save=nothing, sample=nothing),
        progress=Progress(
            is_main=False, first_step=0, total_steps=timed.total_steps, log_every=1 << 30
        ),
    )


class TimedLoader:
    """A loader that looks at the clock whenever the loop asks for the next step's batches."""

    def __init__(
        self, loader: PackedLoader, engine: DeepSpeedEngine, warmup: int, timed: int
    ) -> None:
        self.fingerprint, self.describe = loader.fingerprint, loader.describe
        self.total_steps = warmup + timed + _WATCHED_STEPS
        self._loader, self._engine = loader, engine
        self._timed = range(warmup, warmup + timed)
        self._parts = StepParts(engine.module, engine.device)
        self._waits: list[float] = []
        self._seconds: list[float] = []
        self._tokens: list[int] = []
        self._attended = 0

    def read(self, from_step: int, to_step: int, pin: bool = False) -> Iterator[list[Batch]]:
        asked = time.perf_counter()
        for step, batches in enumerate(self._loader.read(from_step, to_step, pin), from_step):
            if step in self._timed:
                self._waits.append(time.perf_counter() - asked)
                lengths = [_document_lengths(batch) for batch in batches]
                self._tokens.append(sum(int(n.sum()) for n in lengths))
                self._attended += sum(int((n * (n + 1) // 2).sum()) for n in lengths)
            with self._parts if step >= self._timed.stop else contextlib.nullcontext():
                yield batches
            if step == self._timed.start - 1:
                reset_peak_resident()
            # In between the loop runs ahead of a GPU, as it does in training.
            if step in (self._timed.start - 1, self._timed.stop - 1):
                self._wait()
            now = time.perf_counter()
            if step in self._timed:
                self._seconds.append(now - asked)
            if step == self._timed.stop - 1:
                self._resident = peak_resident()
            asked = now

    def results(self) -> dict[str, Any]:
        """Of this rank."""
        watched = self._parts.to_dict()
        parts = {part: s / _WATCHED_STEPS for part, s in watched["step_parts_s"].items()}
        collectives = {
            kind: {name: value / _WATCHED_STEPS for name, value in counted.items()}
            for kind, counted in watched["collectives"].items()
        }
        reserved = None
        if self._engine.device.type == "cuda":
            reserved = torch.cuda.max_memory_reserved(self._engine.device)
        return {
            "step_seconds": self._seconds,
            "num_tokens": self._tokens,
            "attended": self._attended,
            "step_parts_s": parts | {"data_wait": statistics.median(self._waits)},
            "collectives": collectives,
            "peak_reserved_bytes": reserved,
            "peak_resident_bytes": self._resident,
        }

    def _wait(self) -> None:
        if self._engine.device.type == "cuda":
            torch.cuda.synchronize(self._engine.device)


def _document_lengths(batch: Batch) -> Tensor:
    """int64 [documents], without what is padding."""
    starts = batch.cu_seqlens[:-1].long()
    return batch.cu_seqlens.diff().long()[batch.is_token_BT.flatten()[starts]]


def measure_link(device: Device, world_size: int) -> dict[str, float] | None:
    """What a rank sends a second in an all-reduce, and how long the smallest one takes; None with
    one rank."""
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

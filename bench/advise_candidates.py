"""What bench.advise tries: DeepSpeed JSONs, whether each fits, and what would change a good one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minimind.config.deepspeed_json import find_ds_config
from minimind.engine.memory_prediction import MemoryPrediction
from minimind.run.describe import predict_memory_of
from minimind.run.resolve import ResolvedRun
from minimind.run.run import Run, parse_arguments
from minimind.runtime.devices import Device
from minimind.runtime.ranks import Ranks

STAGES = (0, 1, 2, 3)


@dataclass(frozen=True, slots=True)
class Setting:
    """The run that is advised on."""

    model: str
    num_ranks: int
    rows: int
    """Of a step, over all ranks and micro-batches."""
    seq_len: int | None
    device: Device

    def resolve(self, *more: str) -> ResolvedRun:
        """Resolves the run with `more` flags of launch/train.py. Raises ConfigError."""
        flags = ["--model", self.model, "--set", f"train_batch_size={self.rows}", *more]
        flags += ["--seq_len", str(self.seq_len)] if self.seq_len else []
        return Run.on(parse_arguments(flags), Ranks(0, 0, self.num_ranks), self.device).resolved


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of ds_configs/, with these values in it."""

    stage: int
    micro_batch: int
    bucket: int | None = None
    """Elements; None: a quarter of what is trained."""
    overlap: bool | None = None
    """None: where there are several GPUs."""
    offload: bool = False

    @property
    def name(self) -> str:
        words = [f"zero{self.stage}", f"micro-batch {self.micro_batch}"]
        words += [f"buckets {self.bucket:,}"] if self.bucket else []
        words += [] if self.overlap is None else ["overlap" if self.overlap else "no overlap"]
        return ", ".join([*words, *(["offload"] if self.offload else [])])

    def ds_config(self) -> dict[str, Any]:
        """As a run takes it: what depends on recipe and model is still "auto"."""
        shipped = "zero2_offload" if self.offload else f"zero{self.stage}"
        values = json.loads(find_ds_config(shipped).read_text(encoding="utf-8"))
        values["train_micro_batch_size_per_gpu"] = self.micro_batch
        zero = values["zero_optimization"]
        if self.bucket:
            for key in zero.keys() & {"reduce_bucket_size", "allgather_bucket_size"}:
                zero[key] = self.bucket
        if self.overlap is not None:
            zero["overlap_comm"] = self.overlap
        return values

    def write(self, folder: Path) -> Path:
        path = folder / f"{self.name.replace(', ', '-').replace(' ', '_')}.json"
        path.write_text(json.dumps(self.ds_config(), indent=2) + "\n", encoding="utf-8")
        return path

    def predict(self, setting: Setting, folder: Path) -> MemoryPrediction:
        """Of one rank. Raises ConfigError."""
        return predict_memory_of(setting.resolve("--ds_config", str(self.write(folder))))


def micro_batches(setting: Setting) -> list[int]:
    """Those that divide a rank's rows, the largest first."""
    share = setting.rows // setting.num_ranks
    return [size for size in range(share, 0, -1) if share % size == 0]


def largest_that_fits(
    setting: Setting, candidate: Candidate, limit: int, folder: Path
) -> Candidate | None:
    """With the largest micro-batch up to the candidate's own that is predicted to fit."""
    for size in micro_batches(setting):
        smaller = replace(candidate, micro_batch=size)
        if size <= candidate.micro_batch and smaller.predict(setting, folder).peak_bytes <= limit:
            return smaller
    return None


def variants(setting: Setting, best: Candidate, num_trained: int) -> Iterator[Candidate]:
    """The winner of the stages with one thing changed."""
    sizes = micro_batches(setting)
    place = sizes.index(best.micro_batch)
    for size in [*sizes[max(0, place - 1) : place], *sizes[place + 1 : place + 2]]:
        yield replace(best, micro_batch=size)
    if best.stage:
        yield replace(best, bucket=num_trained)
    if best.stage and setting.num_ranks > 1:
        yield replace(best, overlap=setting.device.kind == "cpu")

"""What bench.advise tries: DeepSpeed JSONs, whether each fits, and what would change a good one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minimind.config.deepspeed_json import find_ds_config
from minimind.rehearsal.rehearse import point_of, rehearse_all
from minimind.rehearsal.report import Rehearsal
from minimind.run.arguments import parse_arguments
from minimind.run.run import Run
from minimind.runtime.devices import Device

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

    def resolve(self, *more: str) -> Run:
        """Resolves the run with `more` flags of launch/train.py. Raises ConfigError."""
        flags = ["--model", self.model, "--set", f"train_batch_size={self.rows}", *more]
        flags += ["--seq_len", str(self.seq_len)] if self.seq_len else []
        return Run.of(parse_arguments(flags), (self.device, self.num_ranks))


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


def rehearse_candidates(
    candidates: Sequence[Candidate], setting: Setting, folder: Path
) -> dict[Candidate, Rehearsal]:
    """Rehearses a step of each. Raises ConfigError."""
    runs = [setting.resolve("--ds_config", str(one.write(folder))) for one in candidates]
    points = [point_of(run, run.resolved.arguments) for run in runs]
    return dict(zip(candidates, rehearse_all(points), strict=True))


def micro_batches(setting: Setting) -> list[int]:
    """Those that divide a rank's rows, the largest first."""
    share = setting.rows // setting.num_ranks
    return [size for size in range(share, 0, -1) if share % size == 0]


def largest_that_fit(
    wanted: Sequence[Candidate], setting: Setting, limit: int, folder: Path
) -> dict[Candidate, tuple[Candidate, Rehearsal]]:
    """Gives each candidate with the largest micro-batch, up to its own, whose rehearsal fits; with
    the smallest there is where none does."""
    found: dict[Candidate, tuple[Candidate, Rehearsal]] = {}

    def try_all(candidates: Iterable[Candidate], size: int) -> None:
        tried = {one: replace(one, micro_batch=min(size, one.micro_batch)) for one in candidates}
        rehearsed = rehearse_candidates(list(tried.values()), setting, folder)
        for one, smaller in tried.items():
            if one not in found or rehearsed[smaller].peak_bytes <= limit:
                found[one] = (smaller, rehearsed[smaller])

    sizes = micro_batches(setting)
    try_all(wanted, sizes[0])
    too_large = [
        one
        for one, (tried, rehearsed) in found.items()
        if rehearsed.peak_bytes > limit and tried.micro_batch > sizes[-1]
    ]
    for one in too_large:
        del found[one]
    try_all(too_large, sizes[-1])
    open_ones = {one for one in too_large if found[one][1].peak_bytes <= limit}
    for size in sizes[1:-1]:
        tried = {one for one in open_ones if size < one.micro_batch}
        try_all(tried, size)
        open_ones -= {one for one in tried if found[one][0].micro_batch == size}
    return {one: found[one] for one in wanted}


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

"""Runs in the process of a row of bench.data: tokenises, packs or loads one file."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.workers import peak_resident, reset_peak_resident
from minimind.data.batching import PackedRows
from minimind.data.loader import PackedLoader, WeightedSource
from minimind.data.token_cache import TokenCache, build_token_cache
from minimind.data.tokenizer import Tokenizer
from minimind.stages import STAGES

ROWS = ("tokenise", "pack", "load")
FORMATS = {stage.data_format.name: stage for stage in reversed(STAGES.values())}
"""The first stage that reads each format, by the name of the format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSpec:
    """Describes a row of the results: the part of the work that it measures, the format and its
    files."""

    row: str
    format: str
    tokenizer: Path
    cache: Path
    seq_len: int
    micro_batch: int
    rounds: int

    @property
    def name(self) -> str:
        return f"{self.row} {self.format}"


class DataRow:
    """Holds the methods of a row that the parent calls."""

    def __init__(self, spec: DataSpec) -> None:
        self._spec = spec
        self._tokenizer = Tokenizer.load(spec.tokenizer)
        self._format = FORMATS[spec.format].data_format

    def measure(self, path: Path) -> dict[str, Any]:
        """Works over the whole file, first untimed and then in timed rounds. Gives the seconds of
        each round, the CPU seconds of all threads in it, and the peak of resident memory."""
        once = self.prepare(path)
        once()
        reset_peak_resident()
        seconds, cpu_seconds = [], []
        for _ in range(self._spec.rounds):
            start, cpu_start = time.perf_counter(), time.process_time()
            counts = once()
            seconds.append(time.perf_counter() - start)
            cpu_seconds.append(time.process_time() - cpu_start)
        return {
            **counts,
            "file_bytes": path.stat().st_size,
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "peak_resident_bytes": peak_resident(),
        }

    def prepare(self, path: Path) -> Callable[[], dict[str, Any]]:
        """Gives a function that does the row's work over the file once and counts its results."""
        work = {"tokenise": self._tokenise, "pack": self._pack, "load": self._load}
        return work[self._spec.row](path)

    def _tokenise(self, path: Path) -> Callable[[], dict[str, Any]]:
        fresh = self._spec.cache.with_name("fresh")

        def once() -> dict[str, Any]:
            shutil.rmtree(fresh, ignore_errors=True)
            cache = build_token_cache(path, self._tokenizer, self._format, fresh)
            return {"tokens": cache.num_tokens, "rows": None, "padding_share": None}

        return once

    def _pack(self, path: Path) -> Callable[[], dict[str, Any]]:
        source = WeightedSource(self._cache(path))

        def once() -> dict[str, Any]:
            plan = PackedRows([source], self._spec.seq_len, 0, self._tokenizer.pad_id).plan
            return {
                "tokens": plan.num_tokens,
                "rows": plan.num_rows,
                "padding_share": plan.padding_share,
            }

        return once

    def _load(self, path: Path) -> Callable[[], dict[str, Any]]:
        spec = self._spec
        loader = PackedLoader(
            [WeightedSource(self._cache(path))],
            seq_len=spec.seq_len,
            rows_per_step=spec.micro_batch,
            micro_batch=spec.micro_batch,
            pad_id=self._tokenizer.pad_id,
        )
        steps, plan = loader.steps(1), loader.rows.plan

        def once() -> dict[str, Any]:
            for _ in loader.read(0, steps):
                pass
            rows = steps * spec.micro_batch
            tokens = round(plan.num_tokens * rows / loader.num_rows)
            return {"tokens": tokens, "rows": rows, "padding_share": plan.padding_share}

        return once

    def _cache(self, path: Path) -> TokenCache:
        return build_token_cache(path, self._tokenizer, self._format, self._spec.cache)

"""Reads the results files below bench/results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.harness import RESULTS, Row


def stage_of(row: Row) -> str:
    """Gives the stage of a row of bench.train; its first results files have pretraining alone."""
    return row.get("stage") or "pretrain"


@dataclass(frozen=True, slots=True)
class Results:
    """Holds all results files of all devices."""

    files: Mapping[Path, Row]

    @classmethod
    def load(cls, folder: Path = RESULTS) -> Results:
        files = {}
        for path in sorted(folder.glob("*/*.json")):
            found = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(found, dict) and "benchmark" in found:
                files[path] = found
        return cls(files)

    def oldest_first(self, benchmark: str) -> list[Row]:
        """Lists results by when they were measured: a checkout's files are of one age."""
        return [found for _, found in self.with_paths(benchmark)]

    def newest(self, benchmark: str) -> Row | None:
        return next(reversed(self.oldest_first(benchmark)), None)

    def with_paths(self, benchmark: str) -> list[tuple[Path, Row]]:
        found = [item for item in self.files.items() if item[1]["benchmark"] == benchmark]
        return sorted(found, key=lambda item: item[1]["machine"]["date"])

    def by_device(self, benchmark: str) -> dict[str, list[tuple[Path, Row]]]:
        """Groups a benchmark's results by the device's folder."""
        found: dict[str, list[tuple[Path, Row]]] = {}
        for path, results in sorted(self.with_paths(benchmark), key=lambda item: item[0]):
            found.setdefault(path.parent.name, []).append((path, results))
        return found

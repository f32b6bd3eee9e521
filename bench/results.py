"""The results files below bench/results, and the history that grows out of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.harness import RESULTS, Row, write_json

HISTORY_FILE = "history.json"
_HISTORY_OF = ("name", "model", "stage", "ds_config", "world_size", "useful_tokens_per_s",
               "useful_tokens_per_s_p10", "useful_tokens_per_s_p90", "peak_bytes")  # fmt: skip
_HAS_HISTORY = ("train_step", "scaling")


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


def update_history(results: Results) -> None:
    """Writes each device's history.json with the engine's training rows as they stand now, on one
    rank and on every measured number of ranks: one point for a row and a commit, the newest."""
    by_device: dict[Path, list[dict[str, Any]]] = {}
    for benchmark in _HAS_HISTORY:
        for path, found in results.with_paths(benchmark):
            by_device.setdefault(path.parent, []).extend(_points(path, found))
    for folder, new in by_device.items():
        path = folder / HISTORY_FILE
        points = {_key(point): point for point in (*read_history(path), *new)}
        write_json(path, sorted(points.values(), key=lambda point: point["date"]))


def read_history(path: Path) -> list[dict[str, Any]]:
    """Reads the points of a history, the oldest first; none where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def _points(path: Path, results: Row) -> Iterator[dict[str, Any]]:
    machine = results["machine"]
    commit = machine["commit"] or "not known"
    origin = {"file": path.stem, "commit": commit, "date": machine["date"]}
    is_scaling = results["benchmark"] == "scaling"
    for row in results["rows"]:
        if row["name"] == "engine" or (is_scaling and not row["predicted"]):
            yield origin | {name: row.get(name) for name in _HISTORY_OF}


def _key(point: Row) -> tuple[Any, ...]:
    names = ("file", "commit", "name", "model", "stage", "ds_config")
    # Points without a number of ranks were taken on one.
    return (*(point[name] for name in names), point.get("world_size") or 1)

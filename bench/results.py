"""The results files below bench/results, and the history that grows out of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.harness import RESULTS
from minimind.runtime.whole_files import write_whole

HISTORY_FILE = "history.json"
_HISTORY_OF = ("name", "model", "stage", "ds_config", "world_size", "useful_tokens_per_s",
               "useful_tokens_per_s_p10", "useful_tokens_per_s_p90", "peak_bytes")  # fmt: skip
_HAS_HISTORY = ("train_step", "scaling")


@dataclass(frozen=True, slots=True)
class Results:
    """All results files of all devices."""

    files: Mapping[Path, Mapping[str, Any]]

    @classmethod
    def load(cls, folder: Path = RESULTS) -> Results:
        files = {}
        for path in sorted(folder.glob("*/*.json")):
            found = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(found, dict) and "benchmark" in found:
                files[path] = found
        return cls(files)

    def oldest_first(self, benchmark: str) -> list[Mapping[str, Any]]:
        """By when they were measured: files of a checkout are all of one age."""
        return [found for _, found in self.with_paths(benchmark)]

    def newest(self, benchmark: str) -> Mapping[str, Any] | None:
        return next(reversed(self.oldest_first(benchmark)), None)

    def with_paths(self, benchmark: str) -> list[tuple[Path, Mapping[str, Any]]]:
        found = [item for item in self.files.items() if item[1]["benchmark"] == benchmark]
        return sorted(found, key=lambda item: item[1]["machine"]["date"])

    def by_device(self, benchmark: str) -> dict[str, list[tuple[Path, Mapping[str, Any]]]]:
        """By the device's folder."""
        found: dict[str, list[tuple[Path, Mapping[str, Any]]]] = {}
        for path, results in sorted(self.with_paths(benchmark), key=lambda item: item[0]):
            found.setdefault(path.parent.name, []).append((path, results))
        return found


def update_history(results: Results) -> None:
    """Each device's history.json with the engine's training rows as they stand now, on one rank and
    on every measured number of ranks: one point for a row and a commit, the newest."""
    found: dict[str, list[tuple[Path, Mapping[str, Any]]]] = {}
    for benchmark in _HAS_HISTORY:
        for folder, of_folder in results.by_device(benchmark).items():
            found.setdefault(folder, []).extend(of_folder)
    for of_device in found.values():
        path = of_device[0][0].with_name(HISTORY_FILE)
        points = {_key(point): point for point in read_history(path)}
        for point in _points(of_device):
            points[_key(point)] = point
        ordered = sorted(points.values(), key=lambda point: point["date"])
        text = json.dumps(ordered, indent=1, ensure_ascii=False) + "\n"
        with write_whole(path) as new:
            new.write_text(text, encoding="utf-8")


def read_history(path: Path) -> list[dict[str, Any]]:
    """Oldest first; none where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def _points(found: Sequence[tuple[Path, Mapping[str, Any]]]) -> Iterator[dict[str, Any]]:
    for path, results in found:
        machine = results["machine"]
        origin = {
            "file": path.stem,
            "commit": machine["commit"] or "not known",
            "date": machine["date"],
        }
        for row in results["rows"]:
            is_scaling = results["benchmark"] == "scaling"
            if row["name"] == "engine" or (is_scaling and not row["predicted"]):
                yield origin | {name: row.get(name) for name in _HISTORY_OF}


def _key(point: Mapping[str, Any]) -> tuple[Any, ...]:
    names = ("file", "commit", "name", "model", "stage", "ds_config")
    # Points without a number of ranks were taken on one.
    return (*(point[name] for name in names), point.get("world_size") or 1)

"""Reads back what a run's monitors stored, with the readers of their own libraries."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Kept = dict[tuple[int, str], float]
"""The figures by step and column of metrics.csv."""


def read_csv_of_run(run: Path) -> Kept:
    """Reads every number in metrics.csv."""
    with open(run / "metrics.csv", encoding="utf-8") as file:
        return {
            (int(row["step"]), name): float(text)
            for row in csv.DictReader(file)
            for name, text in row.items()
            if name != "step" and text
        }


def read_tensorboard(folder: Path) -> tuple[Kept, dict[str, list[tuple[int, str]]]]:
    """Reads the scalars, and the texts by name with their steps."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    tags = events.Tags()
    scalars = _once(
        (e.step, name, e.value) for name in tags["scalars"] for e in events.Scalars(name)
    )
    texts = {
        name.removesuffix("/text_summary"): [
            (event.step, event.tensor_proto.string_val[0].decode())
            for event in events.Tensors(name)
        ]
        for name in tags["tensors"]
    }
    return scalars, texts


def read_wandb(run: Path) -> tuple[Kept, dict[str, Any]]:
    """Reads the history in the only transaction log that `wandb sync` would find, and the last of
    each other kind of record."""
    (log,) = (run / "wandb").glob("offline-run-*/*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    records = [json.loads(line) for line in printed.splitlines()]
    items = [r["history"]["item"] for r in records if r["type"] == "history"]
    kept = _once((i["_step"], name, value) for i in items for name, value in i.items())
    return kept, {r["type"]: r[r["type"]] for r in records}


def read_swanlab(run: Path) -> tuple[Kept, dict[str, Any]]:
    """Reads the scalars in the only log that `swanlab sync` would find, and the last of each other
    kind of record."""
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record  # type: ignore[import-not-found]
    from swanlab.sdk.internal.core_python.store import (  # type: ignore[import-not-found]
        DataStoreReader,
    )

    (log,) = (run / "swanlog").glob("run-*/*.swanlab")
    reader, records = DataStoreReader(), []
    reader.open(log)
    while (data := reader.scan()) is not None:
        records.append(Record.FromString(data))
    reader.close()
    scalars = [r.scalar for r in records if r.WhichOneof("record_type") == "scalar"]
    kept = _once((s.step, s.key, s.value.number) for s in scalars)
    return kept, {r.WhichOneof("record_type"): r for r in records}


def read_csv_files(folder: Path) -> Kept:
    found = []
    for path in folder.glob("*.csv"):
        with open(path, newline="", encoding="utf-8") as file:
            (_, name), *rows = csv.reader(file)
        assert path.name == f"train_{name}.csv"
        found += [(int(step), f"train/{name}", float(value)) for step, value in rows]
    return _once(found)


def _once(values: Iterable[tuple[int, str, Any]]) -> Kept:
    """Gives the run's figures; none may occur twice for a step."""
    kept: Kept = {}
    for step, name, value in values:
        if name.startswith("train/"):
            place = step, name.removeprefix("train/")
            assert place not in kept, place
            kept[place] = float(value)
    return kept

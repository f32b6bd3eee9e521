"""Rehearses runs in processes of their own: what is patched there stays there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minimind import errors
from minimind.data.cache_folder import default_cache_dir
from minimind.rehearsal.report import Rehearsal
from minimind.rehearsal.stub import build_stub
from minimind.run.flags import TrainArguments
from minimind.run.resolve import ResolvedRun
from minimind.runtime.devices import GPUS


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A run, and where it is rehearsed."""

    arguments: TrainArguments
    device: str
    """One of GPUS, or cpu for this machine's."""
    ranks: int


def rehearse(run: ResolvedRun, device: str | None = None, ranks: int | None = None) -> Rehearsal:
    """Takes a step of a resolved run on tensors without storage, through the engine, the loop and
    DeepSpeed, as the first of `ranks`; by default where the run itself would be.

    `device`: as --on has it ("h200", "rtx 4090"), or "cpu". Raises ConfigError for a GPU without a
    data sheet, for what the run itself would be refused for, and where a PyTorch without CUDA and
    no C++ compiler make it impossible.
    """
    place = find_place(run, device)
    (found,) = rehearse_all(
        [Point(arguments=run.arguments, device=place, ranks=ranks or run.world_size)]
    )
    return found


def find_place(run: ResolvedRun, device: str | None) -> str:
    """Names the GPU, or cpu, that a run is rehearsed on. Raises ConfigError."""
    if device is not None:
        return known_device(device)
    if run.device.kind == "cpu":
        return "cpu"
    return known_device(run.device.name)


def known_device(name: str) -> str:
    """Gives one of GPUS, or cpu, for a name as people write it. Raises ConfigError."""
    if name.lower() == "cpu":
        return "cpu"

    def plain(text: str) -> str:
        return re.sub(r"[^a-z0-9]", "", text.lower()).removeprefix("nvidia")

    for known in GPUS:
        if plain(name) == plain(known):
            return known
    there = ", ".join(sorted(gpu.lower().replace(" ", "") for gpu in GPUS))
    raise errors.ConfigError(f"{name}: no data sheet of it here; there are cpu, {there}")


def rehearse_all(points: Sequence[Point]) -> list[Rehearsal]:
    """Rehearses many, those of one device and number of ranks in one process. Raises as
    `rehearse`."""
    found: dict[int, Rehearsal] = {}
    groups: dict[tuple[str, int], list[int]] = {}
    for index, point in enumerate(points):
        groups.setdefault((point.device, point.ranks), []).append(index)
    for (device, ranks), indices in groups.items():
        reports = _run_worker(device, ranks, [points[index].arguments for index in indices])
        found |= dict(zip(indices, reports, strict=True))
    return [found[index] for index in range(len(points))]


def _run_worker(device: str, ranks: int, runs: Sequence[TrainArguments]) -> list[Rehearsal]:
    stub = "" if device == "cpu" or _has_cuda() else str(build_stub(default_cache_dir()))
    with tempfile.TemporaryDirectory(prefix="minimind-rehearsal-") as folder:
        points, reports = Path(folder) / "points.json", Path(folder) / "reports.jsonl"
        work = {"device": device, "world_size": ranks, "runs": [run.to_dict() for run in runs]}
        points.write_text(json.dumps(work), encoding="utf-8")
        command = [sys.executable, "-m", "minimind.rehearsal.worker"]
        done = subprocess.run(
            [*command, str(points), str(reports), stub],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        lines = reports.read_text(encoding="utf-8").splitlines() if reports.exists() else []
    if done.returncode:
        raise RuntimeError(f"the rehearsal broke:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return [_read_report(json.loads(line)) for line in lines]


def _read_report(values: dict[str, Any]) -> Rehearsal:
    if kind := values.get("error"):
        raise getattr(errors, kind)(values["message"])
    return Rehearsal.from_dict(values)


def _has_cuda() -> bool:
    """Whether PyTorch was built for CUDA, and needs no stand-in."""
    import torch

    return torch.version.cuda is not None or torch.version.hip is not None

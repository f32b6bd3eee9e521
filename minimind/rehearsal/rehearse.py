"""Rehearses runs in separate processes, since a rehearsal patches PyTorch and DeepSpeed for the
rest of its process."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from minimind import errors
from minimind.rehearsal.rehearsers import Part, find_rehearser
from minimind.rehearsal.report import Rehearsal
from minimind.rehearsal.stub import build_stub
from minimind.run.arguments import TrainArguments
from minimind.run.resolve import ResolvedRun
from minimind.run.run import Run
from minimind.runtime.cache_folder import default_cache_dir
from minimind.runtime.devices import Device
from minimind.runtime.gpus import GPUS, find_gpu


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Names a run, a device and a number of ranks to rehearse it with."""

    arguments: TrainArguments
    device: str
    """A name in GPUS, or "cpu" for this machine's CPU."""
    ranks: int


def rehearse(run: Run, device: str | None = None, ranks: int | None = None) -> Rehearsal:
    """Takes one step of a resolved run on tensors without storage, through the loop, the engine and
    DeepSpeed, as rank 0 of `ranks`. Device and ranks default to the run's own.

    `device` is a name as --on takes it ("h200", "rtx 4090") or "cpu". Raises ConfigError for a GPU
    without a data sheet, for what the run itself would be refused for, and where PyTorch has no
    CUDA and there is no C++ compiler to build the stub.
    """
    return rehearse_all([point_of(run, run.resolved.arguments, device, ranks)])[0]


def point_of(
    run: Run, arguments: TrainArguments, device: str | None = None, ranks: int | None = None
) -> Point:
    """Gives the Point for `arguments`; device and ranks default to those of `run`. Raises
    ConfigError for a device without a data sheet."""
    return Point(
        arguments=arguments,
        device=known_device(device or _name_of(run.resolved.device)),
        ranks=ranks or run.resolved.world_size,
    )


def rehearse_generation(
    model: str, device: str = "h200", *, batch: int = 8, length: int = 1024, **params: Any
) -> Rehearsal:
    """Takes one decoding step of a preset, which gives each of `batch` sequences of about `length`
    tokens one token more. `params` are fields of SamplingParams. Raises ConfigError."""
    run = {"model": model, "batch": batch, "length": length, "params": params}
    return _rehearse_parts([{"device": known_device(device), "world_size": 1, "runs": [run]}])[0][0]


def why_not(run: ResolvedRun) -> str | None:
    """Gives the reason why a run cannot be rehearsed on its device, or None if it can."""
    try:
        _find_stub(known_device(_name_of(run.device)))
    except errors.ConfigError as error:
        return str(error)
    return None


def _name_of(device: Device) -> str:
    if device.kind == "cpu":
        return "cpu"
    known = find_gpu(device.name)
    return known[0] if known else device.name


def known_device(name: str) -> str:
    """Gives the key of GPUS, or "cpu", for a device name as people write it. Raises ConfigError."""
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
    """Rehearses all points, as many at a time as there are cores. Raises the same errors as
    `rehearse`."""
    of_place: dict[tuple[str, int], list[int]] = {}
    for index, point in enumerate(points):
        of_place.setdefault((point.device, point.ranks), []).append(index)
    cores = len(os.sched_getaffinity(0))
    found = dict[int, Rehearsal]()
    for kind in ("cpu", "gpu"):
        shares = [
            (place, indices[first::cores])
            for place, indices in of_place.items()
            for first in range(min(cores, len(indices)))
            if (place[0] == "cpu") == (kind == "cpu")
        ]
        parts: list[Part] = [
            {
                "device": device,
                "world_size": ranks,
                "runs": [points[index].arguments.to_dict() for index in indices],
            }
            for (device, ranks), indices in shares
        ]
        for (_, indices), reports in zip(shares, _rehearse_parts(parts), strict=True):
            found |= zip(indices, reports, strict=True)
    return [found[index] for index in range(len(points))]


def _rehearse_parts(parts: Sequence[Part]) -> list[list[Rehearsal]]:
    """Rehearses parts, all of them on CPUs or all on GPUs."""
    if not parts:
        return []
    device = parts[0]["device"]
    rehearser = find_rehearser("cpu" if device == "cpu" else "gpu", _find_stub(device))
    return [
        [_read(values, run) for values, run in zip(reports, part["runs"], strict=True)]
        for part, reports in zip(parts, rehearser.rehearse(parts), strict=True)
    ]


def _read(values: dict[str, Any], run: dict[str, Any]) -> Rehearsal:
    if kind := values.get("refused"):
        raise getattr(errors, kind)(values["message"])
    if said := values.get("broke"):
        raise RuntimeError(f"the rehearsal of {run} broke:\n{said[-6000:]}")
    return Rehearsal.from_dict(values)


def _find_stub(device: str) -> str:
    """Gives the path of the library that the process must load before PyTorch; "" for a CPU and for
    a PyTorch built with CUDA. Raises ConfigError."""
    if device == "cpu" or torch.version.cuda is not None:
        return ""
    return str(build_stub(default_cache_dir()))

"""Defines what a pipeline must know of a step. Each kind of step is defined in its own file,
`*_step.py`."""

from __future__ import annotations

import abc
import functools
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from minimind.data.data_file import find_data
from minimind.errors import DataError
from minimind.rehearsal.report import Rehearsal
from minimind.run.run import Run
from minimind.runtime.devices import Device
from minimind.runtime.digests import digest_files
from minimind.runtime.versions import versions
from minimind.samples.files import Split
from minimind.samples.sources import find_data_file

Results = Mapping[str, Path]
"""The folder of each earlier step's result, by the step's name."""
Inputs = dict[str, Any]
"""All that decides a step's result, by name: options as JSON has them, digests of contents."""


@dataclass(frozen=True, slots=True)
class Place:
    """Says where a pipeline runs: on how many ranks of which device, and in which folder."""

    device: Device
    ranks: int
    folder: Path
    is_here: bool = True
    """False for a device that only a dry run looks at."""

    def __str__(self) -> str:
        return f"{self.device.name} x {self.ranks}"


@dataclass(slots=True, kw_only=True)
class Checked:
    """Holds what the checks found out about a step before it runs; a plan adds the rehearsal."""

    run: Run | None = None
    """The resolved run of a training step."""
    num_steps: int | None = None
    """The optimizer steps of a training step; None where only reading the data would tell."""
    is_exact: bool = False
    """Whether `num_steps` is exact; else it follows from the beginning of the data."""
    rehearsal: Rehearsal | None = None
    not_rehearsed: str = ""
    """Why there is no rehearsal of a training step."""

    @property
    def least_seconds(self) -> float | None:
        """Gives the lower bound of the time that data sheets set; None where there is none."""
        bound = self.rehearsal.roofline if self.rehearsal else None
        return bound.step * self.num_steps if bound and self.num_steps else None


class Step(abc.ABC):
    """Describes one step of a pipeline: one command, whose result has a folder."""

    verb: ClassVar[str]
    """The verb of `minimind` that the step runs."""

    def __init__(self, name: str, sources: Iterable[str], where: str) -> None:
        self.name = name
        self.sources = tuple(sources)
        """The names of the earlier steps whose results it takes."""
        self.where = where
        """Names the step's place in the file, for messages."""

    @property
    @abc.abstractmethod
    def title(self) -> str:
        """Gives a few words on what the step does."""

    @abc.abstractmethod
    def check(self, results: Results, place: Place) -> Checked:
        """Checks the step as far as that is possible before it runs. `results` may hold stand-ins.
        Raises a MiniMindError."""

    @abc.abstractmethod
    def inputs(self, results: Results, place: Place) -> Inputs:
        """Gives all that decides the step's result. Raises a MiniMindError."""

    @abc.abstractmethod
    def flags(self, results: Results, folder: Path) -> list[str]:
        """Gives the flags of the command that makes the result in `folder`."""

    @abc.abstractmethod
    def is_complete(self, folder: Path) -> bool:
        """Tells whether the files of a finished result are in `folder`."""

    def write_stand_in(self, folder: Path, checked: Checked) -> None:
        """Writes into `folder` what later steps need of the result to be checked before there is
        one. A step whose result no step takes writes nothing."""
        return


def versions_of(*packages: str) -> Inputs:
    """Gives the versions of packages as inputs: MiniMind's in full, and the first two numbers of
    the others, since a change of these may change results."""
    found = versions()
    return {
        f"version of {name}": text if name == "minimind" else ".".join(text.split(".")[:2])
        for name, text in found.items()
        if name in ("minimind", *packages)
    }


def digest_data(paths: Iterable[str], split: Split) -> Inputs:
    """Gives the digests of data files as inputs, by their names without folders, so that data can
    be moved. Raises DataError."""
    found: Inputs = {}
    for path in paths:
        digests = found.setdefault(f"content of {Path(path).name} ({split})", [])
        members = find_data(find_data_file(path, split)).members
        digests += digest_contents(member.path for member in members)
    return found


def digest_contents(paths: Iterable[str | Path]) -> list[str]:
    """Gives the digests of files. Raises DataError."""
    try:
        return [_digest(str(path), *_state(path)) for path in paths]
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from None


def _state(path: str | Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns


@functools.lru_cache(maxsize=4096)
def _digest(path: str, size: int, changed_ns: int) -> str:
    """Gives a file's digest, and reads the file again only after its size or time has changed: a
    pipeline asks when it plans a step and when it makes it."""
    return digest_files(Path(), [path])[path]

"""Keeps the results of steps: a folder for each, named after the step and a digest of its inputs,
with a record of how it was made. A symbolic link with the step's name points to the newest one, so
that no result replaces another.

    runs/tiny/chat -> chat-1f0e9c2a
    runs/tiny/chat-1f0e9c2a/step.json, and what the step's command writes
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from minimind.config.json_file import load_json
from minimind.errors import CheckpointError, ConfigError
from minimind.pipeline.step import Inputs, Place, Results, Step
from minimind.runtime.whole_files import write_whole

RECORD_FILE = "step.json"
_DIGITS = 8
"""The hexadecimal digits of the digest in a folder's name."""
_NAMED = 3
"""The most changed inputs that a message names."""


@dataclass(kw_only=True)
class Record:
    """Describes how a result was made, in its folder's step.json."""

    step: str
    inputs: Inputs
    command: list[str] = field(default_factory=list)
    attempts: list[dict[str, Any]] = field(default_factory=list)
    """When each attempt `began`, and how many `seconds` it took."""
    predicted: dict[str, Any] = field(default_factory=dict)
    """Holds what a rehearsal predicted; empty without one."""
    is_finished: bool = False

    @property
    def seconds(self) -> float:
        """Gives the time of all attempts."""
        return sum(attempt["seconds"] or 0.0 for attempt in self.attempts)

    def save(self, folder: Path) -> None:
        """Writes step.json, whole. Raises ConfigError."""
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with write_whole(folder / RECORD_FILE) as new:
                new.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{folder}: cannot be written to: {error.strerror}") from None

    def begin(self) -> None:
        """Notes that an attempt begins."""
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        self.attempts.append({"began": now, "seconds": None})

    def close_killed(self, folder: Path) -> None:
        """Gives an attempt that never ended, as its process was killed, the time until its last
        file was written."""
        for attempt in self.attempts:
            if attempt["seconds"] is None:
                newest = max((path.stat().st_mtime for path in folder.iterdir()), default=0.0)
                began = datetime.datetime.fromisoformat(attempt["began"]).timestamp()
                attempt["seconds"] = max(0.0, newest - began)


def load_record(folder: Path) -> Record | None:
    """Reads step.json; None where there is none. Raises CheckpointError for one that is damaged."""
    try:
        return Record(**load_json(folder / RECORD_FILE))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{folder / RECORD_FILE}: cannot be read ({error}): remove {folder}, and the step is "
            "made again"
        ) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Names the folder that a step's result has or will have, and describes what is in it now."""

    folder: Path
    inputs: Inputs
    record: Record | None
    """How the result was made, or begun; None where it was not begun."""
    is_done: bool
    earlier: tuple[Path, Record] | None
    """The newest result of the step with other inputs."""

    @property
    def state(self) -> str:
        """Says in a few words what is there."""
        if self.is_done:
            return "done"
        if self.record:
            return "begun"
        return f"to make again: {self.changes}" if self.changes else "to make"

    @property
    def changes(self) -> str:
        """Says which inputs differ from those of the earlier result; "" without one."""
        return describe_changes(self.earlier[1].inputs, self.inputs) if self.earlier else ""


def find_target(step: Step, results: Results, place: Place) -> Target:
    """Finds the folder of the result that a step has with the inputs of now. Reads the data and the
    weights that it takes. Raises a MiniMindError."""
    inputs = json.loads(json.dumps(step.inputs(results, place), default=str))
    text = json.dumps(inputs, sort_keys=True, ensure_ascii=False)
    digest = xxhash.xxh3_128(text.encode()).hexdigest()[:_DIGITS]
    folder = place.folder / f"{step.name}-{digest}"
    record = load_record(folder)
    is_done = bool(record and record.is_finished and step.is_complete(folder))
    others = _find_others(place.folder, step.name, folder)
    return Target(
        folder=folder, inputs=inputs, record=record, is_done=is_done, earlier=next(others, None)
    )


def _find_others(place: Path, step: str, folder: Path) -> Iterator[tuple[Path, Record]]:
    """Yields the results of a step with other inputs, the newest first."""
    name = re.compile(re.escape(step) + rf"-[0-9a-f]{{{_DIGITS}}}")
    found = [
        path / RECORD_FILE
        for path in place.glob(f"{step}-*")
        if name.fullmatch(path.name) and path != folder and (path / RECORD_FILE).is_file()
    ]
    for path in sorted(found, key=lambda path: -path.stat().st_mtime):
        if record := load_record(path.parent):
            yield path.parent, record


def point_link(folder: Path, step: str) -> None:
    """Makes the link with the step's name point to `folder`; the change is atomic. Where something
    else has the name, that is left alone. Raises ConfigError."""
    link = folder.parent / step
    if link.exists() and not link.is_symlink():
        raise ConfigError(f"{link}: is not a link of this pipeline; move it away")
    with contextlib.suppress(OSError):
        if os.readlink(link) == folder.name:
            return
    new = link.with_name(f".{step}.{secrets.token_hex(4)}")
    try:
        new.symlink_to(folder.name)
        new.replace(link)
    except OSError as error:
        raise ConfigError(f"{link}: the link cannot be made: {error.strerror}") from None


def describe_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Says which inputs differ, such as "epochs 1.0 -> 2.0, content of a.jsonl (train)"."""
    changed = [
        name for name in dict.fromkeys([*before, *after]) if before.get(name) != after.get(name)
    ]
    said = [_describe_change(name, before.get(name), after.get(name)) for name in changed[:_NAMED]]
    more = f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
    return ", ".join(said) + more


def _describe_change(name: str, before: Any, after: Any) -> str:
    if name.startswith(("content of", "weights", "tokenizer")):
        return name
    return f"{name} {_short(before)} -> {_short(after)}"


def _short(value: Any) -> str:
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."

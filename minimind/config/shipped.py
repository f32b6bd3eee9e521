"""Finds the JSON files that come with the project: ds_configs/ and recipes/."""

from __future__ import annotations

from pathlib import Path

from minimind.config.spelling import did_you_mean
from minimind.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parents[1]


def shipped_folder(name: str) -> Path:
    """Gives the folder of shipped files: inside the installed package, or at the root of a
    checkout."""
    in_wheel = _PACKAGE / name
    return in_wheel if in_wheel.is_dir() else _PACKAGE.parent / name


def list_shipped(folder: Path) -> list[str]:
    """Lists the names of the shipped files in a folder."""
    return sorted(path.name for path in folder.glob("*.json"))


def find_json(name: str, folder: Path, what: str) -> Path:
    """Finds a JSON file by its path, else in `folder` by its name, with or without `.json`. Raises
    ConfigError, which begins with `what` and the name and lists the names in `folder`, where there
    is none."""
    for path in (Path(name), folder / name, folder / f"{name}.json"):
        if path.is_file():
            return path
    there = list_shipped(folder)
    stems = {Path(one).stem: one for one in there}
    guess = did_you_mean(Path(name).stem, stems, stems.__getitem__)
    raise ConfigError(
        f"{what} {name}: no such file{guess}; in {folder}: {', '.join(there) or 'none'}"
    )

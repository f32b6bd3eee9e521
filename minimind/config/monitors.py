"""Reads the sections of a DeepSpeed JSON that enable monitors. `minimind.monitors` writes to all of
them, since DeepSpeed's own writers count samples instead of steps, give a run no name and do not
know SwanLab."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from minimind.config.spelling import did_you_mean
from minimind.errors import ConfigError

_FOLDERS: dict[str, type] = {"enabled": bool, "job_name": str, "output_path": str}
MONITOR_KEYS: dict[str, dict[str, type]] = {
    "comet": {
        "enabled": bool,
        "experiment_key": str,
        "experiment_name": str,
        "online": bool,
        "project": str,
        "workspace": str,
    },
    "csv_monitor": _FOLDERS,
    "swanlab": {"enabled": bool, "group": str, "project": str, "workspace": str},
    "tensorboard": _FOLDERS,
    "wandb": {"enabled": bool, "group": str, "project": str, "team": str},
}
"""The keys of each monitor's section: DeepSpeed's, and for swanlab MiniMind's own."""
REFUSED_MONITOR_KEYS = {
    "comet.api_key": "run.json would keep it; the environment variable COMET_API_KEY gives it",
    "comet.mode": "a new run is a new experiment, and --resume goes on with the run's own",
    "comet.samples_log_interval": "the figures of each step are written; leave it out",
}
MONITORS = tuple(MONITOR_KEYS)


def check_monitor(name: str, values: Mapping[str, Any], origin: str) -> None:
    """Checks the section of the monitor `name`, one of MONITORS, in a DeepSpeed JSON. Raises
    ConfigError, which names `origin`, for an unknown or refused key, a value of a wrong type, and a
    folder with `..`."""
    known = MONITOR_KEYS[name]
    for key, value in values.items():
        if reason := REFUSED_MONITOR_KEYS.get(f"{name}.{key}"):
            raise ConfigError(f"{origin}: {name}.{key} cannot be used here: {reason}")
        if key not in known:
            raise ConfigError(
                f"{origin}: {name} knows no key {key!r}, but {', '.join(known)}"
                f"{did_you_mean(key, known)}"
            )
        is_left_out = value is None and key != "enabled"
        if not is_left_out and not isinstance(value, known[key]):
            kind = "true or false" if known[key] is bool else "a text"
            raise ConfigError(f"{origin}: {name}.{key} is {value!r}; it must be {kind}")
        if key in ("job_name", "output_path") and ".." in PurePath(value or "").parts:
            raise ConfigError(
                f"{origin}: {name}.{key} {value!r} leaves the run's folder, which it lies in: name "
                "a folder in it, or an absolute output_path"
            )


def switch_monitors(names: Sequence[str], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Adds the monitors named by --monitor to the DeepSpeed JSON's `overrides`, as dotted keys.
    Raises ConfigError for an unknown name, and where flag and overrides contradict each other."""
    if "none" in names and len(names) > 1:
        raise ConfigError(
            f"--monitor {' '.join(names)}: none excludes every monitor; give it alone"
        )
    for name in names:
        if name not in (*MONITORS, "none"):
            raise ConfigError(
                f"--monitor {name}{did_you_mean(name, MONITORS)}; the monitors are "
                f"{', '.join(MONITORS)}; none turns all of them off"
            )
    is_on = "none" not in names
    switched = {f"{name}.enabled": is_on for name in (names if is_on else MONITORS)}
    for key in switched:
        if overrides.get(key, is_on) != is_on:
            raise ConfigError(
                f"--monitor {' '.join(names)} contradicts --set ds_config.{key}="
                f"{str(overrides[key]).lower()}"
            )
    return {**overrides, **switched}


def enabled_monitors(ds_config: Mapping[str, Any]) -> list[str]:
    """Gives the names of the monitors that a resolved JSON enables."""
    return [name for name in MONITORS if (ds_config.get(name) or {}).get("enabled")]


def without_monitors(ds_config: Mapping[str, Any]) -> dict[str, Any]:
    """Gives a resolved JSON without the monitors' sections, as DeepSpeed gets it."""
    return {key: value for key, value in ds_config.items() if key not in MONITOR_KEYS}

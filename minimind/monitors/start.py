"""Checks, then opens, the monitors that a resolved DeepSpeed JSON enables."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from minimind.config.monitors import enabled_monitors
from minimind.errors import ConfigError
from minimind.monitors.background import BackgroundMonitor, Monitors
from minimind.monitors.comet_monitor import CometMonitor
from minimind.monitors.csv_monitor import CsvMonitor
from minimind.monitors.monitor import Monitor, MonitoredRun, Outcome, logs_folder
from minimind.monitors.swanlab_monitor import SwanLabMonitor
from minimind.monitors.tensorboard_monitor import TensorBoardMonitor
from minimind.monitors.wandb_monitor import WandbMonitor


class _Kind(NamedTuple):
    open: Callable[[MonitoredRun, Mapping[str, Any]], Monitor]
    package: str | None = None
    """The Python module that the monitor imports; the extra named after the monitor installs it."""
    otherwise: str = ""
    """The setting to use where there is no network or key."""


_KINDS = {
    "comet": _Kind(CometMonitor, "comet_ml", "--set ds_config.comet.online=false"),
    "csv_monitor": _Kind(CsvMonitor),
    "swanlab": _Kind(SwanLabMonitor, "swanlab", "the environment variable SWANLAB_MODE=offline"),
    "tensorboard": _Kind(TensorBoardMonitor, "tensorboard"),
    "wandb": _Kind(WandbMonitor, "wandb", "the environment variable WANDB_MODE=offline"),
}


def check_monitors(ds_config: Mapping[str, Any], folder: Path, resumed: bool) -> None:
    """Raises ConfigError for a monitor whose package is not installed, and for a new run whose
    monitor would write into the logs of another run. `folder` is the run's."""
    for name in enabled_monitors(ds_config):
        package, section = _KINDS[name].package, ds_config[name]
        if package and not _is_installed(package):
            raise ConfigError(
                f"the monitor {name} needs a package that is not installed: "
                f"pip install 'minimind[{name}]'"
            )
        logs = logs_folder(folder, section, "") if section.get("output_path") else None
        is_shared = logs is not None and folder.absolute() not in logs.absolute().parents
        if logs and is_shared and not resumed and logs.is_dir() and any(logs.iterdir()):
            raise ConfigError(
                f"{name}: {logs} holds the logs of another run: give this one another "
                f"--set ds_config.{name}.job_name=NAME, or leave out output_path"
            )


def start_monitors(run: MonitoredRun, ds_config: Mapping[str, Any]) -> Monitors:
    """Opens every enabled monitor. Raises ConfigError where one cannot be opened."""
    opened: list[BackgroundMonitor] = []
    for name in enabled_monitors(ds_config):
        open_monitor = partial(_KINDS[name].open, run, ds_config[name])
        try:
            opened.append(BackgroundMonitor(name, open_monitor, run))
        except Exception as error:
            # A ConfigError is about files in the run's folder, and going offline does not help with
            # those.
            otherwise = "" if isinstance(error, ConfigError) else _KINDS[name].otherwise
            problem = (
                f"the monitor {name} cannot start: {str(error).rstrip('. ')}"
                + (f"; {otherwise} keeps its logs in the run's folder" if otherwise else "")
                + "; --monitor none does without"
            )
            Monitors(opened).close(Outcome(2, problem))
            raise ConfigError(problem) from error
    return Monitors(opened)


def _is_installed(package: str) -> bool:
    """Tells whether a package is installed. A plain folder of that name in the working directory
    does not count: loggers leave such folders."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None

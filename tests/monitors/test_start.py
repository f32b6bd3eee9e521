"""Which monitors a run is refused for before it starts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from minimind.errors import ConfigError
from minimind.monitors.start import check_monitors

ON = {"swanlab": {"enabled": True}}


def test_a_folder_of_a_loggers_name_is_no_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Loggers leave such folders where a run starts."""
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "swanlab", raising=False)
    (tmp_path / "swanlab").mkdir()
    with pytest.raises(ConfigError, match=r"needs a package.*pip install 'minimind\[swanlab\]'"):
        check_monitors(ON, tmp_path / "run", resumed=False)
    (tmp_path / "swanlab" / "__init__.py").touch()
    check_monitors(ON, tmp_path / "run", resumed=False)
    check_monitors({"swanlab": {"enabled": False}, "wandb": {}}, tmp_path, resumed=False)


@pytest.mark.parametrize("resumed", [True, False])
def test_logs_outside_the_run_belong_to_the_run_that_made_them(tmp_path: Path, resumed: bool):
    logs = tmp_path / "logs"
    section = {"enabled": True, "output_path": str(logs), "job_name": "one"}
    check_monitors({"csv_monitor": section}, tmp_path / "run", resumed)
    (logs / "one").mkdir(parents=True)
    (logs / "one" / "train_loss.csv").touch()
    if resumed:
        check_monitors({"csv_monitor": section}, tmp_path / "run", resumed)
    else:
        with pytest.raises(ConfigError, match=r"another run: give .*csv_monitor.job_name=NAME"):
            check_monitors({"csv_monitor": section}, tmp_path / "run", resumed)
    inside = {"enabled": True, "output_path": str(tmp_path / "run")}
    (tmp_path / "run" / "x").mkdir(parents=True)
    check_monitors({"csv_monitor": inside}, tmp_path / "run", resumed=False)

"""What is asked of each library, and what becomes of numbers that are none."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from monitor_readers import read_csv_files, read_tensorboard

from minimind.errors import ConfigError
from minimind.monitors.comet_monitor import CometMonitor
from minimind.monitors.csv_monitor import CsvMonitor
from minimind.monitors.monitor import DONE, INTERRUPTED, MonitoredRun
from minimind.monitors.tensorboard_monitor import TensorBoardMonitor
from minimind.monitors.wandb_monitor import WandbMonitor


@pytest.fixture
def new_run(tmp_path: Path) -> MonitoredRun:
    folder = tmp_path / "base"
    folder.mkdir()
    return MonitoredRun(folder, {"stage": "sft"}, resumed=False, step=0, reached=0, earlier=[])


def resume(run: MonitoredRun, step: int, reached: int) -> MonitoredRun:
    return replace(run, resumed=True, step=step, reached=reached)


@pytest.mark.parametrize("kind", [CsvMonitor, TensorBoardMonitor])
def test_a_resumed_run_takes_later_steps_back_and_others_stay(
    new_run: MonitoredRun, kind: type[CsvMonitor] | type[TensorBoardMonitor]
):
    if kind is TensorBoardMonitor:
        pytest.importorskip("tensorboard")
    for run, steps in ((new_run, (1, 2, 3)), (resume(new_run, 2, 3), (3, 4))):
        monitor = kind(run, {"enabled": True})
        assert monitor.holds == run.step
        for step in steps:
            monitor.write(step, {"loss": float(step * 10 + run.step)})
        monitor.close(DONE)
    if kind is CsvMonitor:
        kept = read_csv_files(new_run.folder / "csv_monitor")
    else:
        kept, _ = read_tensorboard(new_run.folder / "tensorboard")
    assert kept == {(1, "loss"): 10, (2, "loss"): 20, (3, "loss"): 32, (4, "loss"): 42}


@pytest.mark.parametrize("kind", [CsvMonitor, TensorBoardMonitor])
def test_one_that_was_off_for_a_while_lacks_what_came_then(
    new_run: MonitoredRun, kind: type[CsvMonitor] | type[TensorBoardMonitor]
):
    """Or whose last steps a kill took: metrics.csv has them."""
    if kind is TensorBoardMonitor:
        pytest.importorskip("tensorboard")
    monitor = kind(new_run, {"enabled": True})
    for step in (1, 2):
        monitor.write(step, {"loss": 1.0})
    monitor.close(DONE)
    for step, holds in ((4, 2), (4, 2), (1, 1)):
        again = kind(resume(new_run, step, 5), {"enabled": True})
        again.close(DONE)
        assert again.holds == holds


def test_a_row_that_a_kill_cut_off_is_dropped(new_run: MonitoredRun):
    folder = new_run.folder / "csv_monitor"
    folder.mkdir()
    (folder / "train_loss.csv").write_text("step,loss\n1,5.0\n2,4.0\n3", encoding="utf-8")
    (folder / "train_kl.csv").write_text("", encoding="utf-8")
    (folder / "train_lr.csv").write_text("st", encoding="utf-8")
    CsvMonitor(resume(new_run, 9, 9), {}).write(10, {"loss": 3.0, "kl": 2.0, "lr": 1.0})
    rows = {(1, "loss"): 5, (2, "loss"): 4, (10, "loss"): 3, (10, "kl"): 2, (10, "lr"): 1}
    assert read_csv_files(folder) == rows


def test_what_is_no_number_is_shown_as_such(new_run: MonitoredRun):
    """As fp16's gradient norm of a step that overflowed."""
    pytest.importorskip("tensorboard")
    figures = {"grad_norm": math.inf, "kl": math.nan}
    for kind, folder in ((CsvMonitor, "csv_monitor"), (TensorBoardMonitor, "tensorboard")):
        monitor = kind(new_run, {})
        monitor.write(1, figures)
        monitor.close(DONE)
        path = new_run.folder / folder
        kept = read_csv_files(path) if kind is CsvMonitor else read_tensorboard(path)[0]
        assert kept[1, "grad_norm"] == math.inf
        assert math.isnan(kept[1, "kl"])


def test_texts_stand_as_they_are_whatever_they_look_like(new_run: MonitoredRun):
    pytest.importorskip("tensorboard")
    monitor = TensorBoardMonitor(new_run, {})
    monitor.write_texts(3, ["# no title\n```\n你好", "second"])
    monitor.close(DONE)
    _, texts = read_tensorboard(new_run.folder / "tensorboard")
    assert texts["samples"] == [
        (3, "    # no title\n    ```\n    你好\n\n---\n\n    second"),
    ]


class FakeWandb:
    """wandb's module and its run, that the server has steps of."""

    def __init__(self, mode: str, starting_step: int) -> None:
        self.asked: dict[str, Any] = {}
        self.starting_step = starting_step
        self.mode = mode
        self.logged: list[int] = []
        self.status: int | None = None

    def setup(self) -> SimpleNamespace:
        return SimpleNamespace(settings=SimpleNamespace(mode=self.mode))

    def Settings(self, **asked: Any) -> None:
        pass

    def init(self, **asked: Any) -> FakeWandb:
        self.asked = asked
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append(step)

    def finish(self, exit_code: int) -> None:
        self.status = exit_code


@pytest.fixture
def fake_wandb(monkeypatch: pytest.MonkeyPatch):
    for name in ("WANDB_PROJECT", "WANDB_NAME", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)

    def fake(mode: str, starting_step: int = 0) -> FakeWandb:
        made = FakeWandb(mode, starting_step)
        monkeypatch.setitem(sys.modules, "wandb", made)  # type: ignore[arg-type]
        return made

    return fake


def test_wandb_online_goes_on_with_the_same_run_after_the_steps_it_has(
    new_run: MonitoredRun, fake_wandb: Any
):
    wandb = fake_wandb("online")
    section = {"enabled": True, "project": "p", "team": "t", "group": "g"}
    monitor = WandbMonitor(new_run, section)
    assert monitor.holds == 0
    first = wandb.asked
    assert (first["project"], first["entity"], first["group"]) == ("p", "t", "g")
    assert first["name"] == "base"
    assert first["dir"] == str(new_run.folder)
    assert first["config"] == {"stage": "sft"}
    assert first["resume"] is None
    monitor.close(INTERRUPTED)
    assert wandb.status == 130
    wandb = fake_wandb("online", starting_step=7)
    assert WandbMonitor(resume(new_run, 4, 6), section).holds == 6
    assert wandb.asked["id"] == first["id"]
    assert wandb.asked["resume"] == "allow"


def test_a_new_run_in_an_old_folder_is_a_new_one(new_run: MonitoredRun, fake_wandb: Any):
    ids = []
    for _ in range(2):
        wandb = fake_wandb("online")
        WandbMonitor(new_run, {})
        ids.append(wandb.asked["id"])
    assert ids[0] != ids[1]


def test_wandbs_environment_names_what_the_json_does_not(
    new_run: MonitoredRun, fake_wandb: Any, monkeypatch: pytest.MonkeyPatch
):
    wandb = fake_wandb("online")
    for name in ("project", "name", "run_id"):
        monkeypatch.setenv(f"WANDB_{name.upper()}", f"my-{name}")
    WandbMonitor(new_run, {})
    asked = wandb.asked
    assert (asked["project"], asked["name"], asked["id"]) == ("my-project", "my-name", "my-run_id")
    WandbMonitor(new_run, {"project": "p"})
    assert wandb.asked["project"] == "p"


class FakeComet:
    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}
        self.metrics: list[tuple[int, dict[str, float]]] = []
        self.others: dict[str, Any] = {}
        self.ended = False

    def ExperimentConfig(self, **asked: Any) -> dict[str, Any]:
        return asked

    def start(self, **asked: Any) -> FakeComet:
        self.asked = asked
        return self

    def log_parameters(self, values: dict[str, Any]) -> None:
        self.others["config"] = values

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        self.metrics.append((step, values))

    def log_other(self, name: str, value: Any) -> None:
        self.others[name] = value

    def end(self) -> None:
        self.ended = True


@pytest.mark.parametrize("online", [True, False])
def test_comet_goes_on_after_the_last_recorded_step_or_writes_the_whole_run_anew(
    new_run: MonitoredRun, monkeypatch: pytest.MonkeyPatch, online: bool
):
    comet = FakeComet()
    monkeypatch.setitem(sys.modules, "comet_ml", comet)  # type: ignore[arg-type]
    section = {"enabled": True, "online": online, "project": "p", "experiment_name": "n"}
    monitor = CometMonitor(new_run, section)
    monitor.write(1, {"loss": 2.0})
    monitor.close(INTERRUPTED)
    first = comet.asked
    assert first["project_name"] == "p"
    assert first["experiment_config"]["name"] == "n"
    assert first["experiment_config"]["offline_directory"] == str(new_run.folder / "comet")
    assert comet.metrics == [(1, {"train/loss": 2.0})]
    assert comet.others == {"config": {"stage": "sft"}, "exit status": 130}
    assert comet.ended
    archive = new_run.folder / "comet" / f"{first['experiment_key']}-ab.zip"
    archive.parent.mkdir(parents=True)
    archive.touch()
    assert CometMonitor(resume(new_run, 4, 6), section).holds == (6 if online else 0)
    assert comet.asked["experiment_key"] == first["experiment_key"]
    assert archive.exists() == online
    ids = json.loads((new_run.folder / "monitors.json").read_text(encoding="utf-8"))
    assert ids == {"comet": first["experiment_key"]}


@pytest.mark.parametrize("text", ["{", "[1]", '{"wandb": 3}'])
def test_ids_that_cannot_be_read_are_named(new_run: MonitoredRun, text: str):
    (new_run.folder / "monitors.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"monitors\.json .*; without that file"):
        resume(new_run, 1, 1).find_id("wandb")

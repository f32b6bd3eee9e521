"""Runs with monitors: what is in metrics.csv is in each of them, at its step and once, whatever
happened to the run; read back by their own readers, offline."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from monitor_readers import (
    read_csv_files,
    read_csv_of_run,
    read_swanlab,
    read_tensorboard,
    read_wandb,
)
from training_runs import Train, train_until_killed
from two_ranks import TrainOnTwo

from minimind.engine.loop import Loop
from minimind.errors import TrainingError


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent anywhere, and nothing written outside the test's folder."""
    for name in ("WANDB_MODE", "SWANLAB_MODE"):
        monkeypatch.setenv(name, "offline")
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "SWANLAB_SAVE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    # A process started from here would share W&B's service, which outlives the process that is
    # killed and goes on with its run.
    monkeypatch.setenv("WANDB_SERVICE", "")
    monkeypatch.delenv("WANDB_SERVICE")


def assert_all_kept(run: Path, monitors: list[str]) -> None:
    expected = read_csv_of_run(run)
    assert {name for _, name in expected} >= {"loss", "val_loss", "tokens", "resident_bytes"}
    kept = {
        "tensorboard": lambda: read_tensorboard(run / "tensorboard")[0],
        "wandb": lambda: read_wandb(run)[0],
        "swanlab": lambda: read_swanlab(run)[0],
        "csv_monitor": lambda: read_csv_files(run / "csv_monitor"),
    }
    for name in monitors:
        # TensorBoard keeps fp32.
        assert kept[name]() == pytest.approx(expected, rel=1e-6), name


@pytest.fixture
def libraries(offline: None) -> list[str]:
    return [pytest.importorskip(name).__name__ for name in ("tensorboard", "wandb", "swanlab")]


@pytest.mark.usefixtures("precision")
def test_each_holds_every_figure_of_the_run_and_its_name_and_configuration(
    train: Train, flags: list[str], tmp_path: Path, libraries: list[str]
):
    assert train(*flags, "--sample_every", "6", "--monitor", *libraries, "csv_monitor") == 0
    run = tmp_path / "run"
    assert_all_kept(run, [*libraries, "csv_monitor"])
    resolved = json.loads((run / "run.json").read_text(encoding="utf-8"))
    _, texts = read_tensorboard(run / "tensorboard")
    ((_, config),) = texts["run.json"]
    assert json.loads(config) == resolved
    ((step, samples),) = texts["samples"]
    assert step == 6
    assert samples.startswith("    ")
    _, records = read_wandb(run)
    assert records["run"]["display_name"] == "run"
    assert records["run"]["project"] == "minimind"
    kept = {key: value for key, value in records["run"]["config"]["update"].items()}
    assert {key: kept[key] for key in resolved} == resolved
    assert records["exit"]["exit_code"] == 0
    _, records = read_swanlab(run)
    assert records["start"].start.name == "run"
    assert records["start"].start.project == "minimind"
    assert "hidden_size" in next(run.glob("swanlog/run-*/files/config.yaml")).read_text("utf-8")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "home") == ["run"]


def test_a_run_killed_after_a_checkpoint_goes_on_without_two_values_at_a_step(
    train: Train, flags: list[str], tmp_path: Path, libraries: list[str]
):
    """The killed part recorded a step more than its checkpoint has."""
    run = tmp_path / "run"
    monitors = [*libraries, "csv_monitor"]
    after = "minimind.engine.metrics.MetricsLog.write"
    train_until_killed(*flags, "--monitor", *monitors, after=after, calls=5)
    assert max(step for step, _ in read_csv_of_run(run)) == 5
    ids = json.loads((run / "monitors.json").read_text(encoding="utf-8"))
    assert train("--resume", "--output_dir", str(run)) == 0
    assert_all_kept(run, monitors)
    assert read_wandb(run)[1]["run"]["run_id"] == ids["wandb"]
    assert read_swanlab(run)[1]["start"].start.id == ids["swanlab"]


def test_one_switched_on_in_the_middle_gets_the_steps_before(
    train: Train, flags: list[str], tmp_path: Path, libraries: list[str]
):
    assert train(*flags, "--max_steps", "3") == 0
    more = ["--max_steps", "6", "--monitor", *libraries, "csv_monitor"]
    assert train("--resume", "--output_dir", str(tmp_path / "run"), *more) == 0
    assert_all_kept(tmp_path / "run", [*libraries, "csv_monitor"])


def test_a_failed_and_an_interrupted_run_are_marked_so(
    train: Train,
    flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    libraries: list[str],
):
    take_step = Loop.step

    def interrupted(self: Loop, micro_batches: list[Any]) -> None:
        take_step(self, micro_batches)
        signal.raise_signal(signal.SIGINT)

    def broken(self: Loop, micro_batches: list[Any]) -> None:
        raise TrainingError("it broke")

    run = tmp_path / "run"
    monkeypatch.setattr(Loop, "step", interrupted)
    assert train(*flags, "--monitor", *libraries) == 130
    assert read_wandb(run)[1]["exit"]["exit_code"] == 130
    state = read_swanlab(run)[1]["finish"].finish
    assert (
        state.DESCRIPTOR.fields_by_name["state"]
        .enum_type.values_by_number[state.state]
        .name.endswith("ABORTED")
    )
    monkeypatch.setattr(Loop, "step", broken)
    assert train("--resume", "--output_dir", str(run)) == 1
    assert read_wandb(run)[1]["exit"]["exit_code"] == 1
    assert read_swanlab(run)[1]["finish"].finish.error == "it broke"


def test_of_two_ranks_the_first_writes(
    train_on_two: TrainOnTwo, flags: list[str], tmp_path: Path, offline: None
):
    pytest.importorskip("tensorboard")
    train_on_two(*flags, "--monitor", "tensorboard", "csv_monitor")
    run = tmp_path / "run"
    assert_all_kept(run, ["tensorboard", "csv_monitor"])
    assert len(list((run / "tensorboard").iterdir())) == 1


def test_a_json_of_deepspeeds_switches_them_on_and_its_paths_lie_in_the_run(
    train: Train, flags: list[str], tmp_path: Path, offline: None
):
    pytest.importorskip("tensorboard")
    logs = tmp_path / "logs"
    inside = 'ds_config.csv_monitor={"enabled":true,"output_path":"output","job_name":"first"}'
    outside = f'ds_config.tensorboard={{"enabled":true,"output_path":"{logs}"}}'
    assert train(*flags, "--set", inside, "--set", outside) == 0
    expected = read_csv_of_run(tmp_path / "run")
    assert read_csv_files(tmp_path / "run" / "output" / "first") == expected
    assert read_tensorboard(logs / "run")[0] == pytest.approx(expected, rel=1e-6)


def test_the_folder_of_another_run_is_refused(
    train: Train, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    logs = tmp_path / "logs"
    (logs / "one").mkdir(parents=True)
    (logs / "one" / "train_loss.csv").write_text("step,loss\n1,2\n", encoding="utf-8")
    shared = f'{{"enabled":true,"output_path":"{logs}","job_name":"one"}}'
    for dry in ([], ["--dry_run"]):
        assert train(*flags, "--set", f"ds_config.csv_monitor={shared}", *dry) == 2
        assert "holds the logs of another run" in capsys.readouterr().err

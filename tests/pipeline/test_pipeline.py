"""Whole pipelines: what they leave, what a second call makes again, and where they go on."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_recipes import STEPS, Write

from minimind.cli.pipeline import main
from minimind.pipeline import plan
from minimind.pipeline.process import Child

pytestmark = pytest.mark.usefixtures("unrehearsed")


@pytest.fixture
def unrehearsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out rehearsals, whose processes take seconds to start."""
    monkeypatch.setattr(plan, "why_not", lambda run: "a test")


@pytest.fixture
def steps() -> list[dict[str, Any]]:
    return copy.deepcopy(STEPS)


@pytest.fixture
def run(write: Write, tmp_path: Path, steps: list[dict[str, Any]]) -> Callable[..., int]:
    def run(*flags: str) -> int:
        return main([str(write(steps)), "--output_dir", str(tmp_path / "made"), *flags])

    return run


def made_steps(commands: list[list[str]]) -> list[str]:
    """Names the steps whose commands ran, by the folders that they wrote."""
    names = []
    for command in commands:
        flag = next(f for f in ("--output_dir", "--json", "--output") if f in command)
        path = Path(command[command.index(flag) + 1])
        folder = path if flag == "--output_dir" else path.parent
        names.append(folder.name.rpartition("-")[0])
    commands.clear()
    return names


ALL = ["tokenizer", "text", "chat", "answers", "copy"]


@pytest.mark.usefixtures("precision")
def test_a_pipeline_leaves_a_model_and_a_report_and_is_done_then(
    run: Callable[..., int], commands: list[list[str]], tmp_path: Path
):
    assert run() == 0
    assert made_steps(commands) == ALL
    folder = tmp_path / "made"
    assert (folder / "chat" / "checkpoints" / "latest" / "model" / "model.safetensors").is_file()
    assert (folder / "copy" / "small" / "model.safetensors").is_file()
    tokenizer = (folder / "tokenizer" / "tokenizer.json").read_bytes()
    assert (folder / "copy" / "small" / "tokenizer.json").read_bytes() == tokenizer
    for name in ("report.md", "report.html"):
        said = (folder / name).read_text(encoding="utf-8")
        assert "1 + 1?" in said
        assert "minimind train --stage sft" in said
    assert (folder / "report.html").read_text(encoding="utf-8").count("data:image/png") == 4
    record = json.loads((folder / "chat" / "step.json").read_text(encoding="utf-8"))
    assert record["is_finished"]
    assert record["attempts"][0]["seconds"] > 0
    assert run() == 0
    assert made_steps(commands) == []


def test_what_has_other_inputs_is_made_again_beside_the_earlier(
    run: Callable[..., int],
    commands: list[list[str]],
    steps: list[dict[str, Any]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level("INFO", logger="minimind")
    assert run() == 0
    commands.clear()
    before = (tmp_path / "made" / "chat").resolve()
    steps[2]["max_steps"] = 3
    assert run() == 0
    assert made_steps(commands) == ["chat", "answers", "copy"]
    assert "max_steps 2 -> 3" in caplog.text
    assert f"The earlier result stays in {before}" in caplog.text
    assert (before / "checkpoints" / "latest").exists()
    assert (tmp_path / "made" / "chat").resolve() != before
    steps[2]["max_steps"] = 2
    assert run() == 0
    assert made_steps(commands) == [], "the earlier results are found again"
    assert (tmp_path / "made" / "chat").resolve() == before


def test_what_comes_out_the_same_makes_nothing_again(
    run: Callable[..., int], commands: list[list[str]], steps: list[dict[str, Any]]
):
    """A tokenizer made by other options, and a run that only says more."""
    steps[0]["on_bad_row"] = "skip"
    assert run() == 0
    commands.clear()
    steps[0]["on_bad_row"] = "stop"
    steps[2]["set"] = {"log_every": 1, "micro_batch_size": 2}
    steps[2]["save_every"] = 1
    assert run() == 0
    assert made_steps(commands) == ["tokenizer"]


def test_other_bytes_of_the_data_make_again_what_read_them(
    run: Callable[..., int], commands: list[list[str]], tmp_path: Path, write: Write
):
    assert run() == 0
    commands.clear()
    data = tmp_path / "data" / "chats.jsonl"
    data.write_bytes(data.read_bytes().replace(b"It is 4.", b"It's 4."))
    assert run() == 0
    assert made_steps(commands) == ["chat", "answers", "copy"]


def test_a_stopped_step_goes_on_and_a_lost_one_is_made_again(
    run: Callable[..., int],
    commands: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    whole = Child.run

    def interrupted(self: Child, command: list[str], environment: dict[str, str]) -> int:
        if "sft" not in command:
            return whole(self, command, environment)
        self.interrupted = True
        assert whole(self, [*command, "--max_steps", "1"], environment) == 0
        return 130

    with monkeypatch.context() as patch:
        patch.setattr(Child, "run", interrupted)
        assert run() == 130
    assert made_steps(commands) == ["tokenizer", "text", "chat"]
    assert not (tmp_path / "made" / "chat").exists()
    caplog.set_level("INFO", logger="minimind")
    assert run() == 0
    assert "--resume" in commands[0]
    assert made_steps(commands) == ["chat", "answers", "copy"]
    assert "from step 1 of" in caplog.text
    record = json.loads((tmp_path / "made" / "chat" / "step.json").read_text(encoding="utf-8"))
    assert len(record["attempts"]) == 2
    shutil.rmtree((tmp_path / "made" / "answers").resolve())
    assert run() == 0
    assert made_steps(commands) == ["answers"]


def test_a_step_that_fails_leaves_the_earlier_ones(
    run: Callable[..., int],
    commands: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    whole = Child.run

    def failing(self: Child, command: list[str], environment: dict[str, str]) -> int:
        return -9 if "sft" in command else whole(self, command, environment)

    with monkeypatch.context() as patch:
        patch.setattr(Child, "run", failing)
        assert run() == 1
    assert "small.json: step 3 (chat): its command ended by signal 9" in caplog.text
    commands.clear()
    assert run() == 0
    assert made_steps(commands) == ["chat", "answers", "copy"]


def test_two_pipelines_in_one_folder_are_refused(
    run: Callable[..., int], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    from minimind.pipeline.make import open_folder

    with open_folder(tmp_path / "made"):
        assert run() == 2
    assert "is writing a run into this folder" in caplog.text
    (tmp_path / "made" / "run.json").write_text("{}")
    assert run() == 2
    assert "holds a run; name a folder of its own" in caplog.text


def test_a_dry_run_writes_nothing(
    run: Callable[..., int], commands: list[list[str]], tmp_path: Path, capsys
):
    assert run("--dry_run") == 0
    said = capsys.readouterr().out
    assert "| text " in said
    assert "rehearsed  not: a test" in said
    assert not (tmp_path / "made").exists()
    assert commands == []

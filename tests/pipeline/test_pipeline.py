"""Whole pipelines: what they leave, what a second call makes again, and where they go on."""

from __future__ import annotations

import copy
import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_recipes import STEPS, Write

from minimind.cli.main import run_verb
from minimind.pipeline.make import open_folder
from minimind.pipeline.process import Child

pytestmark = pytest.mark.usefixtures("unrehearsed")
ALL = ["tokenizer", "text", "chat", "answers", "copy"]


@pytest.fixture
def steps() -> list[dict[str, Any]]:
    return copy.deepcopy(STEPS)


@pytest.fixture
def run(write: Write, tmp_path: Path, steps: list[dict[str, Any]]) -> Callable[..., int]:
    """Runs the pipeline of `steps` in tmp_path/made."""

    def run(*flags: str) -> int:
        made = str(tmp_path / "made")
        return run_verb("pipeline", [str(write(steps)), "--output_dir", made, *flags])

    return run


@pytest.fixture(scope="module")
def _finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipeline") / "made"


@pytest.fixture
def made(
    _finished: Path, run: Callable[..., int], commands: list[list[str]], tmp_path: Path
) -> Path:
    """Gives the folder of a finished pipeline, a copy of one that is made once."""
    folder = tmp_path / "made"
    if _finished.exists():
        shutil.copytree(_finished, folder, symlinks=True)
    else:
        assert run() == 0
        assert made_steps(commands) == ALL
        shutil.copytree(folder, _finished, symlinks=True)
    return folder


def made_steps(commands: list[list[str]]) -> list[str]:
    """Names the steps whose commands ran, by the folders that they wrote, and forgets them."""
    names = []
    for command in commands:
        flag = next(f for f in ("--output_dir", "--json", "--output") if f in command)
        path = Path(command[command.index(flag) + 1])
        folder = path if flag == "--output_dir" else path.parent
        names.append(folder.name.rpartition("-")[0])
    commands.clear()
    return names


def test_a_pipeline_leaves_a_model_and_a_report_and_is_done_then(
    run: Callable[..., int], commands: list[list[str]], made: Path
):
    assert (made / "chat" / "checkpoints" / "latest" / "model" / "model.safetensors").is_file()
    assert (made / "copy" / "small" / "model.safetensors").is_file()
    tokenizer = (made / "tokenizer" / "tokenizer.json").read_bytes()
    assert (made / "copy" / "small" / "tokenizer.json").read_bytes() == tokenizer
    for name in ("report.md", "report.html"):
        said = (made / name).read_text(encoding="utf-8")
        assert "1 + 1?" in said
        assert "minimind train --stage sft" in said
        assert said.count("was trained on text and never to chat") == 1
    assert "`text` was trained on text" in (made / "report.md").read_text(encoding="utf-8")
    pictures = [path for name in ("text", "chat", "report") for path in (made / name).glob("*.png")]
    assert len(pictures) >= 4
    page = (made / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") == len(pictures)
    with (made / "chat" / "metrics.csv").open(encoding="utf-8") as file:
        tokens = int(list(csv.DictReader(file))[-1]["tokens"])
    assert tokens <= 2 * 4 * 64
    assert f"| {tokens:,} " in (made / "report.md").read_text(encoding="utf-8")
    record = json.loads((made / "chat" / "step.json").read_text(encoding="utf-8"))
    assert record["is_finished"]
    assert record["attempts"][0]["seconds"] > 0
    assert run() == 0
    assert made_steps(commands) == []


def test_what_has_other_inputs_is_made_again_beside_the_earlier(
    run: Callable[..., int],
    commands: list[list[str]],
    steps: list[dict[str, Any]],
    made: Path,
    capsys: pytest.CaptureFixture[str],
):
    before = made / (made / "chat").readlink()
    steps[2]["max_steps"] = 3
    assert run() == 0
    assert made_steps(commands) == ["chat", "answers", "copy"]
    said = capsys.readouterr().err
    assert f"(max_steps 2 -> 3); the earlier result stays in {before}\n" in said
    assert (before / "checkpoints" / "latest").exists()
    assert made / (made / "chat").readlink() != before
    steps[2]["max_steps"] = 2
    assert run() == 0
    assert made_steps(commands) == [], "the earlier results are found again"
    assert made / (made / "chat").readlink() == before


def test_what_comes_out_the_same_makes_nothing_again(
    run: Callable[..., int], commands: list[list[str]], steps: list[dict[str, Any]], made: Path
):
    """A tokenizer made by other options, and a run that computes and shows otherwise."""
    steps[0]["on_bad_row"] = "skip"
    steps[2]["set"] = {"log_every": 1, "micro_batch_size": 2}
    steps[2] |= {"save_every": 1, "ds_config": "zero1.json"}
    assert run() == 0
    assert made_steps(commands) == ["tokenizer"]


def test_other_bytes_of_the_data_make_again_what_read_them(
    run: Callable[..., int], commands: list[list[str]], tmp_path: Path, made: Path
):
    data = tmp_path / "data" / "chats.jsonl"
    data.write_bytes(data.read_bytes().replace(b"It is", b"That is"))
    assert run() == 0
    assert made_steps(commands) == ["chat", "answers", "copy"]


def test_a_stopped_step_goes_on_and_a_lost_one_is_made_again(
    run: Callable[..., int],
    commands: list[list[str]],
    made: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    whole = Child.run

    def interrupted(self: Child, command: list[str], environment: dict[str, str]) -> int:
        self.interrupted = True
        assert whole(self, [*command, "--max_steps", "1"], environment) == 0
        return 130

    shutil.rmtree(made / (made / "chat").readlink())
    with monkeypatch.context() as patch:
        patch.setattr(Child, "run", interrupted)
        assert run() == 130
    assert "stopped in step 'chat'; the same command goes on from there" in capsys.readouterr().err
    commands.clear()
    shutil.rmtree(made / (made / "answers").readlink())
    assert run() == 0
    assert "--resume" in commands[0]
    # Trained by the same steps, the model is the same, and so the copy of it still is one.
    assert made_steps(commands) == ["chat", "answers"]
    assert "from step 1 of" in capsys.readouterr().err
    record = json.loads((made / "chat" / "step.json").read_text(encoding="utf-8"))
    assert len(record["attempts"]) == 2


def test_a_step_that_fails_leaves_the_earlier_ones(
    run: Callable[..., int],
    commands: list[list[str]],
    made: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    shutil.rmtree(made / (made / "answers").readlink())
    with monkeypatch.context() as patch:
        patch.setattr(Child, "run", lambda *_: -9)
        assert run() == 1
    assert "small.json: step 4 (answers): its command ended by signal 9" in capsys.readouterr().err
    assert run() == 0
    assert made_steps(commands) == ["answers"]


def test_two_pipelines_in_one_folder_are_refused(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with open_folder(tmp_path / "made"):
        assert run() == 2
    assert "is writing a run into this folder" in capsys.readouterr().err
    (tmp_path / "made" / "run.json").write_text("{}")
    assert run() == 2
    assert "holds a run; name a folder of its own" in capsys.readouterr().err


def test_a_dry_run_writes_nothing(
    run: Callable[..., int],
    commands: list[list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    assert run("--dry_run") == 0
    said = capsys.readouterr().out
    assert "| text " in said
    assert "rehearsed  not: a test" in said
    assert not (tmp_path / "made").exists()
    assert commands == []


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--on", "h200"], "add --dry_run"),
        (["--dry_run", "--on", "h201"], "no data sheet of it here"),
        (["--dry_run", "--on", "h200:2", "--ranks", "2"], "leave out --ranks"),
        (["--ranks", "0"], "--ranks is 0; it must be at least 1"),
        (["--ranks", "2", "--launcher", "python"], "the launcher python starts one rank, not 2"),
    ],
)
def test_flags_that_contradict_are_refused(
    run: Callable[..., int], flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
):
    assert run(*flags) == 2
    assert said in capsys.readouterr().err

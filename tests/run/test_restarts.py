"""What a run does where a launcher starts its ranks again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minimind.errors import ConfigError
from minimind.run.arguments import parse_arguments
from minimind.run.folder import resume_after_restart


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    return tmp_path


def resumes(*argv: str) -> bool:
    return resume_after_restart(parse_arguments(argv)).resume


def test_the_same_run_is_resumed_and_another_is_not(folder: Path):
    flags = ["--seed", "1", "--set", "betas=[0.9, 0.95]", "--output_dir", str(folder)]
    assert not resumes(*flags), "there is nothing yet"
    saved = {"arguments": parse_arguments(flags).to_dict()}
    (folder / "run.json").write_text(json.dumps(saved), encoding="utf-8")
    assert resumes(*flags)
    assert not resumes(*flags, "--seed", "2")
    assert resumes(*flags, "--seed", "2", "--resume"), "as the user says"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"arguments": 1}'])
def test_a_run_file_that_says_nothing_is_no_run(folder: Path, text: str):
    (folder / "run.json").write_text(text, encoding="utf-8")
    assert not resumes("--output_dir", str(folder))


def test_restarts_need_a_folder_that_can_be_found_again(folder: Path):
    with pytest.raises(ConfigError, match="--max_restarts needs --output_dir"):
        resumes("--seed", "1")


def test_without_restarts_nothing_changes(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    flags = ["--output_dir", str(folder)]
    saved = {"arguments": parse_arguments(flags).to_dict()}
    (folder / "run.json").write_text(json.dumps(saved), encoding="utf-8")
    assert not resumes(*flags)
    assert not resumes("--seed", "1")

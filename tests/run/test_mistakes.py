"""Mistakes of newcomers: a dry run and a real one refuse them in the same words, with status 2 and
before anything is built."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from minimind.cli.train import main
from minimind.monitors import start as monitors
from minimind.run import run as run_module
from minimind.samples.text import load_sample_tokenizer

MISTAKES: dict[str, tuple[str, list[str]]] = {
    "a model that is none": ("--model minimind2-smal", ["did you mean minimind2-small?"]),
    "a JSON that is none": ("--ds_config zero_2", ["did you mean zero2"]),
    "a key that is none": (
        "--set ds_config.zero_optimization.stge=1",
        ["stge", "did you mean stage?"],
    ),
    "a pattern": ('--set lr_factors={"foo":0.5}', ["weight's name matches foo; names: embed_tok"]),
    "swanlab": ("--monitor swanlab", ["the monitor swanlab needs", "'minimind[swanlab]'"]),
    "wandb": ("--set ds_config.wandb.enabled=true", ["pip install 'minimind[wandb]'"]),
    "comet": ("--set ds_config.comet.enabled=true", ["pip install 'minimind[comet]'"]),
    "a monitor's name as a flag": ("--wandb", ["--wandb: --monitor wandb"]),
    "a key in a file": (
        "--set ds_config.comet.api_key=SECRET",
        ["comet.api_key cannot be used here", "COMET_API_KEY"],
    ),
    "a typo on resuming": (
        "--resume --output_dir runs/typo",
        ["no run to go on with", "is not there (did you mean runs/type?)"],
    ),
    "a folder in use": ("--output_dir runs/type", ["already holds a run's checkpoints"]),
    "a tokenizer's folder": ("--tokenizer largr", ["did you mean larger?", "minimind tokenizer"]),
    "a logger's key": ("--set wandb.enabled=true", ["--set ds_config.wandb.enabled=true"]),
    "no weights for DPO": ("--stage dpo --from_checkpoint none", ["--set loss_type=simpo"]),
    "a data file": ("--data trian.jsonl", ["no such file", "did you mean train.jsonl?"]),
    "sample data": ("--data sample:txt", ["did you mean sample:text?", "sample:tools"]),
    "a checkpoint's folder": (
        "--stage sft --from_checkpoint runs/typ",
        ["did you mean runs/type?"],
    ),
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_launcher: None) -> Path:
    """Where the newcomer starts: a run, a tokenizer and some data."""
    (tmp_path / "runs" / "type" / "checkpoints" / "step-00000002").mkdir(parents=True)
    text = json.dumps({"text": "one two three"}) + "\n"
    (tmp_path / "train.jsonl").write_text(text, encoding="utf-8")
    load_sample_tokenizer().save(tmp_path / "larger")
    monkeypatch.setattr(monitors, "_is_installed", lambda package: False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("mode", ["", "--dry_run"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_it_is_refused_before_anything_is_built(
    home: Path, refused: Callable[..., str], mistake: str, mode: str
):
    before = sorted(home.rglob("*"))
    command, words = MISTAKES[mistake]
    said = refused(command, mode)
    for word in words:
        assert word in said
    assert sorted(home.rglob("*")) == before, "nothing is written"


def test_a_run_that_was_killed_before_its_first_checkpoint_goes_on(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def killed(*arguments: Any) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "build_trained", killed)
    first = ["--data", "train.jsonl", "--output_dir", "runs/new", "--max_steps", "1"]
    more = ["--set", "hidden_size=32", "--seq_len", "8", "--batch_size", "1"]
    assert main([*first, *more]) == 130
    assert (home / "runs" / "new" / "run.json").exists()
    again = ["--resume", "--output_dir", "runs/new", "--dry_run"]
    assert main(again) == 0
    assert "1 rows x 8 tokens" in capsys.readouterr().out
    # Started anew it may be another run: nothing was trained yet.
    assert main([*first, *more, "--seed", "1"]) == 130
    assert json.loads((home / "runs" / "new" / "run.json").read_text())["recipe"]["seed"] == 1


def test_the_banner_names_the_jsons_scheduler(home: Path, capsys: pytest.CaptureFixture[str]):
    schedule = '{"type":"WarmupLR","params":{"warmup_num_steps":10}}'
    flags = ["--data", "train.jsonl", "--set", f"ds_config.scheduler={schedule}", "--dry_run"]
    assert main([*flags, "--seq_len", "8", "--batch_size", "1", "--max_steps", "11"]) == 0
    said = capsys.readouterr().out
    assert "WarmupLR of the DeepSpeed JSON, 6.00e-03 peak, 10 warm-up steps (steps 1 and 2" in said

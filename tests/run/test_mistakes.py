"""Mistakes of newcomers: a dry run and a real one refuse them in the same words, with status 2 and
before anything is built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from small_adapters import named
from small_models import random_model, small_config

from minimind.cli.train import main
from minimind.model.state_dict import save_hf_folder
from minimind.monitors import start as monitors
from minimind.run import run as run_module
from minimind.samples.text import load_sample_tokenizer

MISTAKES: dict[str, tuple[str, list[str]]] = {
    "an unknown flag": ("--max_step 3", ["unknown flag: --max_step (did you mean --max_steps"]),
    "the original's flags": (
        "--data_path x.jsonl --hidden_size 512 --use_wandb",
        ["--data_path is --data x.jsonl here", "--set hidden_size=512 here", "--monitor swanlab"],
    ),
    "an unknown option": ("--set hiden_size=64", ["did you mean --set hidden_size?"]),
    "a model that is none": ("--model minimind2-smal", ["did you mean minimind2-small?"]),
    "a stage that is none": ("--stage pretrian", ["did you mean pretrain?"]),
    "two batch sizes": (
        "--batch_size 32 --set train_batch_size=64",
        ["--batch_size 32 and --set train_batch_size=64 contradict"],
    ),
    "three batch sizes": (
        "--batch_size 8 --set micro_batch_size=4 --set ds_config.gradient_accumulation_steps=4",
        ["gradient_accumulation_steps is 4", "= 2", "leave one of the three out"],
    ),
    "a batch that is not whole": ("--batch_size 8 --set micro_batch_size=3", ["1, 2, 4, 8"]),
    "a JSON that is none": ("--ds_config zero_2", ["did you mean zero2"]),
    "a key that is none": (
        "--set ds_config.zero_optimization.stge=1",
        ["stge", "did you mean stage?"],
    ),
    "an optimizer that is none": (
        "--set ds_config.optimizer.type=sgd",
        ["'sgd' (did you mean SGD?)"],
    ),
    "an optimizer's parameter": (
        "--set ds_config.optimizer.type=SGD --set betas=[0.9,0.9]",
        ["the optimizer SGD has no betas"],
    ),
    "a rate beside a scheduler": (
        '--set ds_config.scheduler={"type":"WarmupLR"} --learning_rate 1e-3',
        ["its own scheduler, which contradicts learning_rate"],
    ),
    "a pattern": ('--set lr_factors={"foo":0.5}', ["weight's name matches foo; names: embed_tok"]),
    "swanlab": ("--monitor swanlab", ["the monitor swanlab needs", "'minimind[swanlab]'"]),
    "wandb": ("--set ds_config.wandb.enabled=true", ["pip install 'minimind[wandb]'"]),
    "comet": ("--set ds_config.comet.enabled=true", ["pip install 'minimind[comet]'"]),
    "a monitor that is none": (
        "--monitor wanbd",
        ["did you mean wandb?", "none turns all of them off"],
    ),
    "a monitor's name as a flag": ("--wandb", ["--wandb: --monitor wandb"]),
    "transformers' flag": ("--report_to wandb", ["--report_to is --monitor wandb here"]),
    "a monitor on and off": (
        "--monitor wandb --set ds_config.wandb.enabled=false",
        ["--monitor wandb contradicts --set ds_config.wandb.enabled=false"],
    ),
    "a key in a file": (
        "--set ds_config.comet.api_key=SECRET",
        ["comet.api_key cannot be used here", "COMET_API_KEY"],
    ),
    "a typo on resuming": (
        "--resume --output_dir runs/typo",
        ["no run to go on with", "is not there (did you mean runs/type?)"],
    ),
    "a folder that is no run's": (
        "--resume --output_dir runs/empty",
        ["no run to go on with, as the folder has no run.json"],
    ),
    "a folder in use": ("--output_dir runs/type", ["already holds a run's checkpoints"]),
    "a stage without its start": (
        "--stage sft",
        ["starts from trained weights: give --from_checkpoint", "none to start fresh"],
    ),
    "a tokenizer's folder": ("--tokenizer largr", ["did you mean larger?", "minimind tokenizer"]),
    "a logger's key": ("--set wandb.enabled=true", ["--set ds_config.wandb.enabled=true"]),
    "no weights for LoRA": ("--stage lora --from_checkpoint none", ["so it cannot start fresh"]),
    "no weights for DPO": ("--stage dpo --from_checkpoint none", ["--set loss_type=simpo"]),
    "a tokenizer beside a checkpoint": (
        "--stage sft --from_checkpoint small --tokenizer larger",
        ["1577 tokens", "only 1400", "leave out --tokenizer"],
    ),
    "a shape beside a checkpoint": (
        "--stage sft --from_checkpoint small --tokenizer larger --set vocab_size=1577",
        ["change the shape", "--from_checkpoint none --model"],
    ),
    "too long rows": (
        "--set max_position_embeddings=128 --seq_len 256",
        ["--seq_len 128 or less, or --set max_position_embeddings=256"],
    ),
    "a data file": ("--data trian.jsonl", ["no such file", "did you mean train.jsonl?"]),
    "sample data": ("--data sample:txt", ["did you mean sample:text?", "sample:tools"]),
    "a checkpoint's folder": (
        "--stage sft --from_checkpoint runs/typ",
        ["did you mean runs/type?"],
    ),
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_launcher: None) -> Path:
    """Where the newcomer starts: a run, an empty folder, a checkpoint and some data."""
    (tmp_path / "runs" / "type" / "checkpoints" / "step-00000002").mkdir(parents=True)
    (tmp_path / "runs" / "empty").mkdir()
    text = json.dumps({"text": "one two three"}) + "\n"
    (tmp_path / "train.jsonl").write_text(text, encoding="utf-8")
    config = small_config(vocab_size=1400)
    save_hf_folder(tmp_path / "small", config, named(random_model(config)), torch.float32)
    load_sample_tokenizer().save(tmp_path / "larger")
    monkeypatch.setattr(monitors, "_is_installed", lambda package: False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("mode", ["dry run", "real run"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_it_is_refused_before_anything_is_built(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    mistake: str,
    mode: str,
):
    def built(*arguments: Any) -> NoReturn:
        raise AssertionError("it was built")

    monkeypatch.setattr(run_module, "build_trained", built)
    before = sorted(home.rglob("*"))
    command, words = MISTAKES[mistake]
    assert status_of([*command.split(), *(["--dry_run"] if mode == "dry run" else [])]) == 2
    said = capsys.readouterr()
    for word in words:
        assert word in said.err
    assert "Traceback" not in said.err
    assert said.out == ""
    assert sorted(home.rglob("*")) == before, "nothing is written"


def status_of(argv: list[str]) -> int:
    try:
        return main(argv)
    except SystemExit as end:
        return int(end.code or 0)


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

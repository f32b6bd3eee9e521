"""A run from Python: the same as from the command line, whole or step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import read_losses

import minimind.run
from minimind.engine.checkpoint import find_model_folder
from minimind.errors import ConfigError
from minimind.model.adapter_folder import load_model_folder
from minimind.run import Run

SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "seq_len": 64}
OPTIONS: dict[str, Any] = {**SMALL, "max_steps": 4, "train_batch_size": 4, "eval_every": 2}
pytestmark = pytest.mark.usefixtures("no_launcher")


def test_keyword_arguments_and_flags_mean_the_same(tmp_path: Path):
    given = Run.resolve(
        model="tiny",
        data=tmp_path / "a.jsonl",
        learning_rate=0.01,
        max_steps=3,
        hidden_size=32,
        lr_factors={"norm": 0.5},
        set={"ds_config.gradient_accumulation_steps": 2, "micro_batch_size": 2},
        output_dir=tmp_path / "run",
        seed=None,
    )
    flags = ["--model", "tiny", "--data", str(tmp_path / "a.jsonl"), "--learning_rate", "0.01"]
    flags += ["--max_steps", "3", "--set", "hidden_size=32", "--set", 'lr_factors={"norm": 0.5}']
    flags += ["--set", "ds_config.gradient_accumulation_steps=2", "--set", "micro_batch_size=2"]
    flags += ["--output_dir", str(tmp_path / "run")]
    assert given.resolved == Run.resolve(flags).resolved


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage": "kot"}, "stage='kot'"),
        ({"hiden_size": 32}, "hiden_size"),
        ({"max_steps": 3, "set": {"max_steps": 4}}, "max_steps.* contradict"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'; it must be float"),
    ],
)
def test_arguments_that_cannot_be(options: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        Run.resolve(**options)


def test_steps_one_by_one_are_those_of_training(tmp_path: Path):
    folder = minimind.run.train(**OPTIONS, output_dir=tmp_path / "run")
    assert folder == tmp_path / "run"
    stepped = Run.resolve(**OPTIONS, output_dir=tmp_path / "nothing").build()
    found = []
    for _ in range(4):
        stats = stepped.step()
        assert stats is not None
        found.append((stats.step, float(f"{stats.loss:.6f}")))
    assert found == [row[:2] for row in read_losses(folder)]
    with pytest.raises(StopIteration):
        stepped.step()
    _, saved = load_model_folder(find_model_folder(folder / "checkpoints" / "latest"))
    for name, weight in stepped.loop.engine.full_weights().items():
        assert torch.equal(weight, saved[name]) if name in saved else True
    assert not (tmp_path / "nothing").exists()


def test_a_run_says_what_it_will_do_before_it_builds_anything():
    run = Run.resolve(**OPTIONS)
    assert "pretrain of tiny" in run.describe()
    assert run.total_steps == 4
    assert run.folder is None


def test_a_run_goes_on_from_python_too(tmp_path: Path):
    whole = minimind.run.train(**OPTIONS, output_dir=tmp_path / "whole")
    first = {**OPTIONS, "max_steps": 2}
    minimind.run.train(**first, output_dir=tmp_path / "parts")
    again = minimind.run.train(resume=True, output_dir=tmp_path / "parts", max_steps=4)
    assert [step for step, *_ in read_losses(again)] == [step for step, *_ in read_losses(whole)]

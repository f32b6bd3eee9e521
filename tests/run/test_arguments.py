"""The command line of launch/train.py: what was given and nothing else."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from parsed_flags import OtherRecipe, parse, two_stages

from minimind.config.model import ModelConfig
from minimind.config.recipe import FLAGS
from minimind.errors import ConfigError
from minimind.run.arguments import collect_arguments


def test_nothing_given_is_nothing_kept():
    arguments = parse()
    assert arguments.to_dict() == {"run": {}, "recipe": {}, "model": {}, "ds_config": {}}
    assert not arguments.resume
    assert not arguments.dry_run
    assert arguments.local_rank is None
    assert arguments.get("stage") == "pretrain"
    assert arguments.get("ds_config") == "zero2.json"
    assert arguments.get("model") == "tiny"
    assert arguments.get("on_bad_row") == "stop"
    for name in ("tokenizer", "data", "val_data", "from_checkpoint", "output_dir"):
        assert arguments.get(name) is None


def test_every_flag_goes_where_it_belongs():
    arguments = parse(
        *("--stage", "other", "--ds_config", "zero1.json", "--model", "minimind3"),
        *("--tokenizer", "tok", "--data", "a.jsonl:0.7", "b.jsonl:0.3", "--val_data", "v.jsonl"),
        *("--from_checkpoint", "run", "--output_dir", "out", "--max_steps", "7", "--epochs", "2"),
        *("--batch_size", "12", "--seq_len", "128", "--learning_rate", "1e-3", "--eval_every", "5"),
        *(
            "--save_every",
            "6",
            "--keep_every",
            "60",
            "--sample_every",
            "8",
            "--resume",
            "--seed",
            "9",
        ),
        *("--on_bad_row", "skip", "--dry_run", "--local_rank=1"),
        *("--set", "dropout=0.1", "--set", "beta=0.2", "--set", "ds_config.bf16.enabled=false"),
    )
    assert arguments.run == {
        "stage": "other",
        "ds_config": "zero1.json",
        "model": "minimind3",
        "tokenizer": "tok",
        "data": ["a.jsonl:0.7", "b.jsonl:0.3"],
        "val_data": ["v.jsonl"],
        "from_checkpoint": "run",
        "output_dir": "out",
        "on_bad_row": "skip",
    }
    assert arguments.recipe == {
        "max_steps": 7,
        "epochs": 2.0,
        "train_batch_size": 12,
        "seq_len": 128,
        "learning_rate": 1e-3,
        "eval_every": 5,
        "save_every": 6,
        "keep_every": 60,
        "sample_every": 8,
        "seed": 9,
        "beta": 0.2,
    }
    assert set(FLAGS) <= set(arguments.recipe)
    assert arguments.model == {"dropout": 0.1}
    assert arguments.ds_config == {"bf16.enabled": False}
    assert (arguments.resume, arguments.dry_run, arguments.local_rank) == (True, True, 1)


def test_arguments_become_the_flags_that_they_are_read_from():
    """Also texts that look like numbers, tables and lists."""
    given = parse(
        *("--stage", "other", "--data", "a.jsonl:0.5", "b c.jsonl:0.5", "--output_dir", "runs/x"),
        *("--epochs", "1.5", "--batch_size", "8", "--set", "beta=0.25", "--set", "betas=[0.9,0.5]"),
        *("--set", 'lr_factors={"norm": 0.5}', "--set", "hidden_size=64"),
        *("--set", "ds_config.bf16.enabled=false", "--set", 'ds_config.wandb.project="7"'),
    )
    assert parse(*given.to_flags()) == given
    assert given.ds_config["wandb.project"] == "7"


def test_a_default_given_is_still_given():
    """What the user says must be able to contradict; what he leaves out must not."""
    assert parse("--seed", "42", "--model", "tiny").to_dict() == {
        "run": {"model": "tiny"},
        "recipe": {"seed": 42},
        "model": {},
        "ds_config": {},
    }


def test_set_reaches_every_field_of_model_and_recipe():
    for field in dataclasses.fields(ModelConfig):
        assert parse("--set", f"{field.name}=1").model == {field.name: 1}
    for field in dataclasses.fields(OtherRecipe):
        found = parse("--stage", "other", "--set", f"{field.name}=1")
        assert found.recipe == {field.name: 1}


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("hidden_sizes", ["did you mean --set hidden_size?", "--help", "ds_config.KEY"]),
        ("learning_rates", ["did you mean --learning_rate?"]),
        ("warmup", ["did you mean --set warmup_steps?"]),
        ("xyz", ["neither a field of the model nor an option of pretrain", "--help"]),
        ("beta", ["an option of --stage other, not of pretrain: --set beta=1"]),
        ("stage", ["is --stage 1 here"]),
        ("train_batch", ["did you mean --batch_size?"]),
        ("max_seq_len", ["is --seq_len 1 here"]),
        ("zero_optimization.stage", ["--set ds_config.zero_optimization.stage=1"]),
    ],
)
def test_an_unknown_key_of_set_says_what_it_may_have_meant(key: str, words: list[str]):
    with pytest.raises(ConfigError) as caught:
        parse("--set", f"{key}=1")
    for word in (f"--set {key}", *words):
        assert word in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_flag_and_set_must_agree():
    with pytest.raises(ConfigError, match=r"--seed 1 and --set seed=2 contradict"):
        parse("--seed", "1", "--set", "seed=2")
    assert parse("--seed", "1", "--set", "seed=1").recipe == {"seed": 1}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--xyz"], ["unknown flag: --xyz\n", "--help lists all"]),
        (["--max_step", "3"], ["unknown flag: --max_step (did you mean --max_steps", "?)"]),
        (["--dry-run"], ["--dry-run is --dry_run here"]),
        (["--train_batch_size=8"], ["--train_batch_size is --batch_size 8 here"]),
        (["--hidden_size", "512"], ["--hidden_size is --set hidden_size=512 here"]),
        (["--hiden_size", "512"], ["--hiden_size (did you mean --set hidden_size?)"]),
        (["--beta", "0.2"], ["option of --stage other, not of pretrain: --set beta=0.2"]),
        (["stray"], ["'stray' stands alone: a flag begins with --"]),
        (["--set", "a=1", "b=2"], ["'b=2' stands alone: --set b=2 is one flag"]),
        (["--max_steps", "many"], ["--max_steps", "'many'"]),
        (["--max_steps", "2.5"], ["--max_steps", "'2.5'"]),
        (["--learning_rate", "fast"], ["--learning_rate", "'fast'"]),
        (["--stage", "sleep"], ["--stage", "'sleep' is no stage", "pretrain", "other"]),
        (["--stage", "pretain"], ["'pretain' is no stage (did you mean pretrain?)"]),
        (["--stage"], ["--stage", "expected one argument"]),
        (["--on_bad_row", "ignore"], ["--on_bad_row", "'ignore'", "stop", "skip"]),
        (["--format", "share_gpt"], ["--format", "did you mean sharegpt?", "alpaca", "paragraphs"]),
        (["--data"], ["--data", "expected at least one argument"]),
    ],
)
def test_bad_usage_exits_with_2(fails: Callable[..., str], argv: list[str], words: list[str]):
    said = fails(*argv)
    for word in words:
        assert word in said
    assert "usage" not in said
    assert len(said.splitlines()) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stage": "kot"}, ["stage='kot'", "'kot' is no stage", "pretrain, other"]),
        ({"stage": "othr"}, ["did you mean other?"]),
        ({"stge": "other"}, ["stge: neither", "did you mean stage?"]),
        ({"hiden_size": 64}, ["did you mean hidden_size?"]),
        ({"data_path": "x"}, ["data_path is data here"]),
        ({"grad_clip": 1.0, "max_seq_len": 3}, ["grad_clip is gradient_clipping", "\n  max_seq"]),
        ({"on_bad_row": "ignore"}, ["on_bad_row='ignore'", "stop, skip"]),
        ({"format": "opnai"}, ["format='opnai'", "did you mean openai?"]),
        ({"batch_size": 4, "train_batch_size": 8}, ["batch_size=4", "contradict"]),
        ({"batch_size": 4, "set": {"train_batch_size": 8}}, ["contradict"]),
    ],
)
def test_python_gets_the_same_help_in_its_own_spelling(options: dict[str, Any], words: list[str]):
    with two_stages, pytest.raises(ConfigError) as caught:
        collect_arguments(options)
    for word in words:
        assert word in str(caught.value)


def test_batch_size_is_rows_of_a_step():
    assert parse("--batch_size", "32").recipe == {"train_batch_size": 32}
    assert collect_arguments({"batch_size": 32}).recipe == {"train_batch_size": 32}
    with pytest.raises(ConfigError, match=r"--batch_size 32 and --set train_batch_size=64"):
        parse("--batch_size", "32", "--set", "train_batch_size=64")


def test_only_one_rank_speaks_of_bad_usage(
    fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RANK", "1")
    assert fails("--xyz") == ""


def test_help_groups_the_flags_and_gives_every_default(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        parse("--stage", "other", "--help")
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for group in ("what to train, on what:", "how (options of the stage", "control:"):
        assert group in text
    for flag in ("--ds_config", "--from_checkpoint", "--resume", "--dry_run", "--set KEY=VALUE"):
        assert flag in text
    for default in ("zero2.json", "tiny", "pretrain", "42", "3.0", "200", "stop"):
        assert f"(default: {default})" in text
    for field in dataclasses.fields(OtherRecipe):
        assert re.search(rf" {field.name}[= ]", text), field.name
    assert "beta=0.15 weight of the other thing" in text
    assert "hidden_size" in text
    assert "--local_rank" not in text


def test_a_resumed_run_repeats_what_is_not_given_anew():
    first = parse(
        *("--model", "minimind3", "--seed", "1", "--max_steps", "5", "--output_dir", "out"),
        *("--set", "dropout=0.1", "--set", "ds_config.bf16.enabled=false"),
    )
    earlier = json.loads(json.dumps(first.to_dict()))
    again = parse("--resume", "--output_dir", "out", "--max_steps", "9", "--set", "ds_config.a=1")
    merged = again.merge(earlier)
    assert merged.run == {"model": "minimind3", "output_dir": "out"}
    assert merged.recipe == {"seed": 1, "max_steps": 9}
    assert merged.model == {"dropout": 0.1}
    assert merged.ds_config == {"bf16.enabled": False, "a": 1}
    assert merged.resume
    assert again.recipe == {"max_steps": 9}, "merging must not change what it merges"
    empty: dict[str, Any] = {}
    assert again.merge(empty) == again


def test_options_of_a_stage_belong_to_it_alone():
    assert parse("--stage", "other", "--set", "beta=0.5").recipe == {"beta": 0.5}
    with pytest.raises(ConfigError, match="--set beta"):
        parse("--set", "beta=0.5")

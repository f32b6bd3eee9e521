"""Distillation from the command line: one run like another, with a teacher beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from chats import ANSWER, USER
from training_runs import (
    WITHOUT_CLIPPING,
    Train,
    assert_same_run,
    assert_same_weights,
    final_weights,
    read_rows,
)
from two_ranks import TrainOnTwo


@pytest.fixture
def teacher(train: Train, run_flags: list[str], tmp_path: Path) -> Path:
    """A wider model's run."""
    folder = tmp_path / "teacher"
    wide = ["--set", "hidden_size=48", "--set", "num_hidden_layers=1", "--max_steps", "1"]
    assert train(*run_flags, *wide, "--eval_every", "0", "--output_dir", str(folder)) == 0
    return folder


@pytest.fixture
def flags(teacher: Path, shape: list[str], tmp_path: Path) -> list[str]:
    """Four steps of two micro-batches, with a checkpoint after two."""
    data = tmp_path / "chat.jsonl"
    chats = [
        [{**USER, "content": f"{n} + {n} = ?"}, {**ANSWER, "content": f"{2 * n} " * (1 + n % 5)}]
        for n in range(60)
    ]
    rows = [json.dumps({"conversations": chat}) for chat in chats]
    data.write_text("\n".join(rows), encoding="utf-8")
    return [
        *("--stage", "distill", "--from_checkpoint", "none", *shape),
        *("--set", f"teacher={teacher}", "--data", str(data), "--val_data", str(data)),
        *("--seq_len", "64", "--max_steps", "4", "--eval_every", "2", "--save_every", "2"),
        *("--set", "train_batch_size=4", "--set", "micro_batch_size=2", "--set", "eval_rows=4"),
        *("--output_dir", str(tmp_path / "run")),
    ]


def read_metrics(run: Path) -> list[dict[str, float]]:
    return [{k: float(v) for k, v in row.items() if v} for row in read_rows(run)]


@pytest.mark.usefixtures("precision")
def test_a_run_logs_both_parts_keeps_the_student_alone_and_resumes_bitwise(
    train: Train, flags: list[str], teacher: Path, tmp_path: Path
):
    before = final_weights(teacher)
    assert train(*flags, "--set", "alpha=0.25") == 0
    run = tmp_path / "run"
    rows = read_metrics(run)
    for row in rows:
        assert row["loss"] == pytest.approx(0.25 * row["ce"] + 0.75 * 1.5**2 * row["kl"], rel=1e-5)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["val_loss"] < rows[1]["val_loss"]
    for name, weight in final_weights(teacher).items():
        assert torch.equal(weight, before[name])
    trained = final_weights(run)
    assert trained["embed_tokens.weight"].shape[1] == 32
    shards = (run / "checkpoints" / "latest" / "engine").rglob("*")
    states = 4 * 4 * sum(weight.numel() for weight in trained.values())
    assert sum(file.stat().st_size for file in shards) < states + 2**18

    again = tmp_path / "again"
    shutil.copytree(run, again, symlinks=True)
    shutil.rmtree(again / "checkpoints" / "step-00000004")
    assert train("--resume", "--output_dir", str(again)) == 0
    assert_same_weights(run, again)


def test_a_teacher_whose_run_has_gone_on_is_not_taken_for_the_one_of_before(
    train: Train,
    flags: list[str],
    teacher: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    assert train(*flags, "--max_steps", "2") == 0
    assert train("--resume", "--output_dir", str(teacher), "--max_steps", "2") == 0
    resume = ["--resume", "--output_dir", str(tmp_path / "run"), "--max_steps", "3"]
    assert train(*resume, "--dry_run") == 2
    assert train(*resume) == 2
    assert "trained beside other weights" in capsys.readouterr().err
    first = teacher / "checkpoints" / "step-00000001"
    assert train(*resume, "--set", f"teacher={first}") == 0


@pytest.mark.usefixtures("precision")
def test_other_files_and_two_ranks_take_the_same_steps(
    train: Train, train_on_two: TrainOnTwo, flags: list[str], tmp_path: Path
):
    flags = [*flags, *WITHOUT_CLIPPING]
    assert train(*flags) == 0
    for name in ("zero1", "zero3"):
        other = ["--ds_config", f"{name}.json", "--output_dir", str(tmp_path / name)]
        assert train(*flags, *other) == 0
    two = ["--ds_config", "zero3.json", "--output_dir", str(tmp_path / "two")]
    train_on_two(*flags, *two)
    for run in ("zero1", "zero3", "two"):
        assert_same_run(tmp_path / "run", tmp_path / run)
        for one, same in zip(
            read_metrics(tmp_path / "run"), read_metrics(tmp_path / run), strict=True
        ):
            assert [one["ce"], one["kl"]] == [same["ce"], same["kl"]]


def test_bf16_has_a_teacher_in_bf16(
    train: Train, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert train(*flags, "--set", "ds_config.bf16.enabled=true", "--max_steps", "1") == 0
    assert "parameters, bfloat16" in capsys.readouterr().err
    assert read_metrics(tmp_path / "run")[0]["kl"] > 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "teacher="], "give --set teacher=FOLDER"),
        (["--set", "teacher=nowhere"], "nowhere: neither a run's folder"),
        (["--set", "vocab_size=2000"], "vocabulary of 1577, the student one of 2000"),
    ],
)
def test_a_teacher_that_cannot_teach_ends_with_status_2(
    train: Train,
    flags: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
):
    assert train(*flags, *more) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()

"""Answers with a label from the command line: learnt, and the same steps under any split."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from training_runs import Train, read_column, read_losses
from two_ranks import TrainOnTwo, check_other_files_and_two_ranks


@pytest.fixture
def kto_flags(
    train: Train, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> list[str]:
    """Of a run on labelled answers in tmp_path/run, from weights that were trained a little."""
    start, path = tmp_path / "start", tmp_path / "answers.jsonl"
    assert train(*flags, "--output_dir", str(start), "--max_steps", "2") == 0
    capsys.readouterr()
    rows = []
    for number in range(120):
        is_good = number % 2 == 0
        word = "是" if is_good else "It is"
        turns = [
            {"role": "user", "content": "7 加 5 是多少？"},
            {"role": "assistant", "content": f"{word} {number} " * (1 + number % 5)},
        ]
        rows.append({"conversations": turns, "label": is_good})
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return [
        *("--stage", "kto", "--from_checkpoint", str(start)),
        *("--data", str(path), "--val_data", str(path), "--output_dir", str(tmp_path / "run")),
        *("--seq_len", "128", "--max_steps", "6", "--eval_every", "3", "--save_every", "2"),
        *("--set", "train_batch_size=4", "--set", "micro_batch_size=2", "--set", "eval_rows=4"),
        *("--learning_rate", "1e-3"),
    ]


@pytest.mark.usefixtures("precision")
def test_labels_are_learnt_from_one_half_on(train: Train, kto_flags: list[str], tmp_path: Path):
    assert train(*kto_flags, "--max_steps", "24", "--learning_rate", "3e-3") == 0
    run = tmp_path / "run"
    losses = read_losses(run)
    assert losses[0][1] == 0.5
    assert read_column(run, "kl")[0] == 0, "the reference is the policy's own first forward"
    assert losses[-1][1] < 0.4
    assert min(read_column(run, "kl")) >= 0
    assert read_column(run, "good_reward")[-1] > read_column(run, "bad_reward")[-1] + 0.5
    validations = [float(value) for _, _, value in losses if value]
    assert validations[-1] < validations[0]


@pytest.mark.usefixtures("precision")
def test_other_files_and_two_ranks_judge_alike(
    train: Train, train_on_two: TrainOnTwo, kto_flags: list[str], tmp_path: Path
):
    check_other_files_and_two_ranks(train, train_on_two, kto_flags, tmp_path)

"""Each stage from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chats import CHATS
from training_runs import Train, read_losses


def test_a_run_on_conversations(
    train: Train, shape: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "chat.jsonl"
    turns = [*CHATS["several turns"], {"role": "user", "content": "q"}]
    turns.append({"role": "assistant", "content": "塔恩 " * 30})
    rows = [{"conversations": chat} for chat in (CHATS["several turns"], turns) for _ in range(9)]
    question = [{"role": "user", "content": "long " * 60}, {"role": "assistant", "content": "a"}]
    rows.append({"conversations": question})
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    flags = ["--stage", "sft", "--from_checkpoint", "none", "--data", str(path), *shape]
    flags += ["--set", "train_batch_size=4", "--set", "micro_batch_size=4", "--seq_len", "64"]
    flags += ["--set", "empty_think_ratio=0.5"]
    flags += ["--learning_rate", "0.01", "--max_steps", "12", "--sample_every", "12"]
    assert train(*flags, "--output_dir", str(tmp_path / "run")) == 0
    losses = read_losses(tmp_path / "run")
    assert losses[-1][1] < losses[0][1] - 0.5
    console = capsys.readouterr().err
    assert "cut        10 documents to fit a row, 1 of them before any target" in console
    assert "step 12: q → " in console

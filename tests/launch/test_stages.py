"""Each stage from the command line."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from chats import CHATS
from stage_options import REQUIRED_OPTIONS
from training_runs import (
    Train,
    assert_same_run,
    read_column,
    read_losses,
    train_until_killed,
)
from two_ranks import TrainOnTwo, check_other_files_and_two_ranks

from minimind.config.model import load_model_config
from minimind.engine.stage import Policy
from minimind.model.state_dict import save_hf_folder
from minimind.model.transformer import Transformer
from minimind.samples.text import load_sample_tokenizer
from minimind.stages import STAGES
from minimind.stages.rollout_stage import RolloutStage
from minimind.stages.sft import SFT
from minimind.types import IGNORE_INDEX, Batch, LossSum


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
    assert (
        "cut        10 documents to fit a row; 1 of 19 conversations have no target left" in console
    )
    assert "step 12: q → " in console


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., Path]:
    """start(dtype) -> a folder of small weights to start from."""

    def make(dtype: torch.dtype = torch.float32) -> Path:
        tokenizer = load_sample_tokenizer()
        sizes = {"hidden_size": 32, "num_hidden_layers": 2}
        config = load_model_config("tiny", sizes, tokenizer_vocab=tokenizer.vocab_size)
        model = Transformer(config)
        model.init_weights(3)
        weights = {name: p.detach() for name, p in model.named_parameters()}
        save_hf_folder(tmp_path / "start", config, weights, dtype)
        tokenizer.save(tmp_path / "start")
        return tmp_path / "start"

    return make


@pytest.fixture
def sft_flags(start: Callable[..., Path], tmp_path: Path) -> list[str]:
    """Of a run in tmp_path/run, on conversations of which some are nearly all targets and some
    hardly any: two micro-batches hold different numbers of them."""
    path = tmp_path / "chats.jsonl"
    rows = []
    for number in range(60):
        lengths = (1, 9) if number % 2 else (9, 1)
        texts = [f"{number} + {number} " * length for length in lengths]
        turns = zip(("user", "assistant"), texts, strict=True)
        rows.append({"conversations": [{"role": r, "content": text} for r, text in turns]})
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return [
        *("--stage", "sft", "--from_checkpoint", str(start()), "--data", str(path)),
        *("--output_dir", str(tmp_path / "run"), "--seq_len", "128", "--max_steps", "4"),
        *("--set", "train_batch_size=4", "--set", "micro_batch_size=2"),
        *("--learning_rate", "1e-3"),
    ]


def test_speed_counts_tokens_and_not_targets(
    train: Train, sft_flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Else MFU would depend on how long the answers are."""
    seen = {"tokens": 0, "targets": 0}
    loss = SFT.loss

    def counting(self: SFT, policy: Policy, batch: Batch) -> LossSum:
        seen["tokens"] += int(batch.is_token_BT.sum())
        seen["targets"] += int((batch.labels_BT != IGNORE_INDEX).sum())
        return loss(self, policy, batch)

    monkeypatch.setattr(SFT, "loss", counting)
    assert train(*sft_flags) == 0
    assert read_column(tmp_path / "run", "tokens")[-1] == seen["tokens"] > 1.2 * seen["targets"]


@pytest.mark.usefixtures("precision")
def test_other_files_and_two_ranks_learn_conversations_alike(
    train: Train, train_on_two: TrainOnTwo, sft_flags: list[str], tmp_path: Path
):
    check_other_files_and_two_ranks(train, train_on_two, sft_flags, tmp_path)
    losses = [loss for _, loss, _ in read_losses(tmp_path / "run")]
    assert losses[-1] < losses[0]


@pytest.fixture
def dpo_flags(start: Callable[..., Path], tmp_path: Path) -> list[str]:
    """Of a run on a few pairs in tmp_path/run: four rows a step in two micro-batches."""
    path = tmp_path / "pairs.jsonl"
    question = {"role": "user", "content": "7 加 5 是多少？"}
    rows = [
        {
            side: [
                question,
                {"role": "assistant", "content": f"{word} {number} " * (1 + number % 5)},
            ]
            for side, word in (("chosen", "是"), ("rejected", "It is"))
        }
        for number in range(60)
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return [
        *("--stage", "dpo", "--from_checkpoint", str(start())),
        *("--data", str(path), "--val_data", str(path), "--output_dir", str(tmp_path / "run")),
        *("--seq_len", "128", "--max_steps", "6", "--eval_every", "3", "--save_every", "2"),
        *("--set", "train_batch_size=4", "--set", "micro_batch_size=2", "--set", "eval_rows=4"),
        *("--learning_rate", "1e-3"),
    ]


@pytest.mark.parametrize(
    "stage",
    [n for n, s in STAGES.items() if s.needs_checkpoint and n not in REQUIRED_OPTIONS],
)
def test_a_stage_runs_on_the_sample_data(
    train: Train,
    start: Callable[..., Path],
    tmp_path: Path,
    stage: str,
    capsys: pytest.CaptureFixture[str],
):
    flags = ["--stage", stage, "--from_checkpoint", str(start()), "--max_steps", "2"]
    flags += ["--sample_every", "2", "--output_dir", str(tmp_path / "run")]
    assert train(*flags) == 0
    assert math.isfinite(read_losses(tmp_path / "run")[-1][1])
    said = "What is the river of Lumor called\\? → "
    if issubclass(STAGES[stage], RolloutStage):  # it shows answers that it learns from
        said = r".* → .*  \(reward -?\d"
    assert re.search(f"step 2: {said}", capsys.readouterr().err)


@pytest.mark.usefixtures("precision")
def test_preferences_are_learnt_from_log_2_on(train: Train, dpo_flags: list[str], tmp_path: Path):
    assert train(*dpo_flags, "--max_steps", "12") == 0
    run = tmp_path / "run"
    losses = read_losses(run)
    assert losses[0][1] == round(math.log(2), 6)
    assert losses[-1][1] < losses[0][1] - 0.2
    margins = read_column(run, "reward_margin")
    assert margins[0] == 0, "the reference is the policy's own first forward"
    assert margins[-1] > 0.5
    assert read_column(run, "reward_accuracy")[-1] > 0.9
    assert read_column(run, "chosen_log_prob")[0] < 0


@pytest.mark.usefixtures("precision")
def test_other_files_and_two_ranks_prefer_alike(
    train: Train, train_on_two: TrainOnTwo, dpo_flags: list[str], tmp_path: Path
):
    """Though the ranks' micro-batches hold different numbers of pairs."""
    check_other_files_and_two_ranks(train, train_on_two, dpo_flags, tmp_path)
    for name in ("reward_margin", "chosen_log_prob"):
        one, two = (read_column(tmp_path / run, name) for run in ("run", "two"))
        assert one == two


def test_a_killed_run_resumes_bitwise_though_its_reference_is_lost(
    train: Train, dpo_flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path / "cache"))
    assert train(*dpo_flags, "--output_dir", str(tmp_path / "whole")) == 0
    train_until_killed(*dpo_flags, after="minimind.engine.loop.seed_micro_batch", calls=7)
    shutil.rmtree(tmp_path / "cache" / "reference")
    assert train("--resume", "--output_dir", str(tmp_path / "run")) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_rounded_weights_with_a_small_rate_are_warned_of(
    train: Train,
    dpo_flags: list[str],
    start: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
):
    start(torch.bfloat16)
    assert train(*dpo_flags, "--max_steps", "1", "--learning_rate", "4e-8") == 0
    message = "holds bfloat16 weights, which a learning rate of 4e-08 hardly moves"
    assert message in capsys.readouterr().err

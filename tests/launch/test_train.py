"""A run from the command line: what it learns and writes, on one rank and on two."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from training_runs import (
    WITHOUT_CLIPPING,
    Train,
    assert_like_losses,
    assert_like_weights,
    assert_same_run,
    final_weights,
    launch_on_two,
    read_column,
    read_losses,
)
from two_ranks import TrainOnTwo


def test_a_run_learns_and_leaves_everything_a_user_needs(
    train: Train, flags: list[str], tmp_path: Path
):
    assert train(*flags, "--max_steps", "20", "--sample_every", "20") == 0
    run = tmp_path / "run"
    losses = read_losses(run)
    assert [step for step, *_ in losses] == list(range(1, 21))
    assert losses[-1][1] < losses[0][1] - 0.5
    assert [step for step, _, val in losses if val] == [3, 6, 9, 12, 15, 18, 20]
    header = (run / "metrics.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header == (
        "step,loss,val_loss,learning_rate,grad_norm,tokens,tokens_per_s,peak_bytes,resident_bytes"
    )
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    saved = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert saved["recipe"]["train_batch_size"] == 4
    assert "auto" not in json.dumps(saved["ds_config"])
    assert (run / "checkpoints" / "latest").resolve().name == "step-00000020"
    assert (run / "checkpoints" / "best" / "model" / "tokenizer.json").exists()
    assert not list((run / "checkpoints").glob(".unfinished*"))
    assert all(weight.dtype == torch.float32 for weight in final_weights(run).values())


def test_without_data_it_trains_on_the_sample_data_in_a_folder_of_its_own(
    train: Train, shape: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    few = ["--max_steps", "1", "--seq_len", "32", "--eval_every", "0", "--sample_every", "1"]
    for number in (1, 2):
        assert train(*few, *shape) == 0
        assert (tmp_path / "runs" / f"pretrain-tiny-{number}" / "checkpoints" / "latest").exists()


@pytest.mark.usefixtures("precision")
@pytest.mark.parametrize(
    ("optimizer", "names"),
    [("Muon", ("zero0", "zero1", "zero2", "zero3")), ("AdamW", ("zero2", "zero2_offload"))],
)
def test_every_zero_stage_takes_the_same_steps_on_one_rank_and_on_two(
    train: Train, train_on_two: TrainOnTwo, flags: list[str], tmp_path: Path, optimizer: str,
    names: tuple[str, ...],
):  # fmt: skip
    flags = [*flags, *WITHOUT_CLIPPING, "--set", f"optimizer={optimizer}"]
    assert train(*flags) == 0
    for name in names:
        file = ["--ds_config", f"{name}.json"]
        if name != "zero2":
            assert train(*flags, *file, "--output_dir", str(tmp_path / name)) == 0
            assert_same_run(tmp_path / "run", tmp_path / name)
        two = tmp_path / f"{name} on two"
        train_on_two(*flags, *file, "--output_dir", str(two))
        assert_same_run(tmp_path / "run", two)


@pytest.mark.usefixtures("fp32")
def test_clipping_does_not_depend_on_stage_or_ranks(
    train: Train, train_on_two: TrainOnTwo, flags: list[str], tmp_path: Path
):
    """But for the last digits of the norm, which Adam makes a share of the rate."""
    assert train(*flags) == 0
    for name in ("zero0", "zero1", "zero2", "zero3"):
        other = tmp_path / name
        train_on_two(*flags, "--ds_config", f"{name}.json", "--output_dir", str(other))
        assert_like_losses(tmp_path / "run", other, within=2e-5)
        assert_like_weights(tmp_path / "run", other)


@pytest.mark.parametrize("name", ["zero0", "zero1", "zero2", "zero3"])
def test_bf16_trains_from_exact_masters(
    train: Train, run_flags: list[str], shape: list[str], tmp_path: Path, name: str
):
    """At a rate far below a bf16 step fp32 masters still move, from where they were."""
    start = tmp_path / "start"
    once = [*run_flags, "--ds_config", f"{name}.json", "--max_steps", "1", "--eval_every", "0"]
    assert train(*once, *shape, "--output_dir", str(start)) == 0
    small = ["--set", "ds_config.bf16.enabled=true", "--learning_rate", "1e-6"]
    assert train(*once, *small, "--from_checkpoint", str(start)) == 0
    before, after = final_weights(start), final_weights(tmp_path / "run")
    for weight_name in before:
        moved = (after[weight_name] - before[weight_name]).abs()
        assert 0 < moved.max() <= 2e-6, weight_name


def test_the_deepspeed_launcher_starts_two_ranks(flags: list[str], tmp_path: Path, train: Train):
    flags = [*flags, *WITHOUT_CLIPPING]
    assert train(*flags) == 0
    done = launch_on_two(*flags, "--output_dir", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "run", tmp_path / "two")


def test_a_dry_run_says_what_would_happen_and_does_nothing(
    train: Train, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert train(*flags, "--dry_run") == 0
    said = capsys.readouterr().out
    for part in ("parameters", "ZeRO stage 2", "6 steps", "tokens", "memory"):
        assert part in said
    assert not (tmp_path / "run").exists()


def test_a_schedule_in_the_json_is_used_instead(train: Train, flags: list[str], tmp_path: Path):
    parts = '{"type": "WarmupLR", "params": {"warmup_max_lr": 0.002, '
    scheduler = parts + '"warmup_num_steps": 4, "warmup_type": "linear"}}'
    assert train(*flags, "--set", f"ds_config.scheduler={scheduler}") == 0
    rates = read_column(tmp_path / "run", "learning_rate")
    assert rates[-1] == pytest.approx(0.002)
    assert rates[0] < 0.001

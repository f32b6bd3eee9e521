"""What stops a run, before or while it trains: the message, the exit status and what is left."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from minimind_kernels import backend
from training_runs import Train, launch_on_two, read_losses

from minimind.data.loader import PackedLoader
from minimind.engine import checkpoint_store
from minimind.engine.stage import Policy
from minimind.stages.pretrain import Pretrain
from minimind.types import Batch, LossSum


@pytest.mark.faults(
    "the disk is full while a checkpoint is saved", "the run goes on, without this checkpoint"
)
def test_a_full_disk_costs_one_checkpoint_and_not_the_run(
    train: Train,
    flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    save, calls = checkpoint_store.save_hf_folder, []

    def full(*arguments: object) -> None:
        calls.append(1)
        if len(calls) in (2, 4):
            raise OSError(28, "No space left on device")
        save(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint_store, "save_hf_folder", full)
    assert train(*flags, "--eval_every", "0", "--save_every", "2") == 0
    saved = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert saved == ["latest", "step-00000002", "step-00000006"]
    monkeypatch.setattr(checkpoint_store, "save_hf_folder", lambda *_: full(calls.pop()))
    calls[:] = [1, 1, 1]
    again = [*flags, "--output_dir", str(tmp_path / "again"), "--max_steps", "1"]
    assert train(*again) == 1
    assert not list((tmp_path / "again" / "checkpoints").iterdir())


@pytest.mark.faults(
    "a loss that is not finite", "the run ends, names the rows, keeps the last checkpoint"
)
def test_a_loss_that_is_not_finite_names_its_rows_and_keeps_the_checkpoint(
    train: Train,
    flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    loss, calls = Pretrain.loss, []

    def sometimes_nan(self: Pretrain, policy: Policy, batch: Batch) -> LossSum:
        calls.append(1)
        result = loss(self, policy, batch)
        return replace(result, total=result.total + float("nan")) if len(calls) == 6 else result

    monkeypatch.setattr(Pretrain, "loss", sometimes_nan)
    described = []
    describe = PackedLoader.describe
    monkeypatch.setattr(
        PackedLoader, "describe", lambda *place: described.append(place[1:]) or describe(*place)
    )
    assert train(*flags, "--eval_every", "0", "--save_every", "1") == 1
    error = capsys.readouterr().err
    assert "step 3: the loss is nan" in error
    assert "data.jsonl:" in error
    assert described == [(2, 1)]
    assert (tmp_path / "run" / "checkpoints" / "latest").resolve().name == "step-00000002"


@pytest.mark.faults("a gradient that is not finite", "the run ends and says so")
def test_a_gradient_that_is_not_finite_ends_the_run(
    train: Train, flags: list[str], capsys: pytest.CaptureFixture[str]
):
    assert train(*flags, "--learning_rate", "1e30") == 1
    assert "gradient norm inf" in capsys.readouterr().err


@pytest.mark.faults(
    "rows that are no JSON, no UTF-8 or lack their key",
    "each is named by line before the run starts",
)
def test_bad_rows_stop_the_run_before_it_starts_or_are_skipped_and_listed(
    train: Train, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(
        b'{"text": "good line, long enough to train on"}\n{"text": 5}\n\n'
        b'not json\n{"text": "bad \xff"}\n{"text": "<|im_end|> stays text"}\n'
    )
    assert train(*flags, "--data", str(bad)) == 2
    error = capsys.readouterr().err
    for line in (2, 4, 5):
        assert f"bad.jsonl:{line}: " in error
    for line in (1, 3, 6):
        assert f"bad.jsonl:{line}: " not in error
    assert not (tmp_path / "run").exists()
    assert train(*flags, "--data", str(bad), "--on_bad_row", "skip", "--max_steps", "2") == 0
    assert "bad.jsonl:4: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "ds_config.fp16.enabled=true"], "fp16"),
        (["--set", 'ds_config.scheduler={"type": "NoSuch"}'], "NoSuch"),
        (["--set", 'ds_config.scheduler={"type": "WarmupLR", "params": {"warm": 1}}'], "warm"),
    ],
)
@pytest.mark.faults("wrong flags, keys and files", "each is named, status 2")
def test_what_is_wrong_is_named_and_ends_with_status_2(
    train: Train,
    flags: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
):
    """Beside the mistakes of tests/run/test_mistakes.py."""
    assert train(*flags, *more) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("below", ["", "deeper"])
@pytest.mark.faults("an output folder that is a file", "refused before the run")
def test_an_output_folder_that_is_a_file_is_named(
    train: Train, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], below: str
):
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / below
    assert train(*flags, "--output_dir", str(folder)) == 2
    said = capsys.readouterr().err
    assert f"--output_dir {folder}: {tmp_path / 'file'} is a file; name a folder" in said


@pytest.mark.faults("a validation loss of NaN", "is never the best")
def test_a_validation_loss_that_is_no_number_is_not_the_best_for_good(
    train: Train, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    loss, calls = Pretrain.loss, []

    def first_nan(self: Pretrain, policy: Policy, batch: Batch) -> LossSum:
        result = loss(self, policy, batch)
        if torch.is_grad_enabled():
            return result
        calls.append(1)
        return replace(result, total=result.total * math.nan) if len(calls) == 1 else result

    monkeypatch.setattr(Pretrain, "loss", first_nan)
    assert train(*flags) == 0
    assert next(val for _, _, val in read_losses(tmp_path / "run") if val) == "nan"
    assert (tmp_path / "run" / "checkpoints" / "best").resolve().name == "step-00000006"


@pytest.mark.parametrize(
    ("value", "message"),
    [("fast", "MINIMIND_KERNELS='fast' is not known"), ("triton", "needs a CUDA or ROCm GPU")],
)
def test_a_choice_of_kernels_that_cannot_be_met(
    train: Train,
    flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    value: str,
    message: str,
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(backend, "interpreting", lambda: False)
    monkeypatch.setenv("MINIMIND_KERNELS", value)
    backend.kernels_setting.cache_clear()
    try:
        assert train(*flags) == 2
    finally:
        backend.kernels_setting.cache_clear()
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "run").exists()


@pytest.mark.faults("bad input with two ranks", "one rank says it, both end")
def test_of_two_ranks_one_says_what_is_wrong_and_both_leave(flags: list[str], tmp_path: Path):
    """With what rank 0 alone looks at."""
    (tmp_path / "run" / "checkpoints" / "step-00000001").mkdir(parents=True)
    done = launch_on_two(*flags)
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert said.count("already holds a run's checkpoints") == 1
    assert "Traceback" not in said


@pytest.mark.faults("an empty data file, a JSON that is none", "named, status 2")
def test_an_empty_file_and_a_json_that_is_none(
    train: Train, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    assert train(*flags, "--data", str(empty)) == 2
    assert "empty.jsonl" in capsys.readouterr().err
    broken = tmp_path / "broken.json"
    broken.write_text('{"train_batch_size": ', encoding="utf-8")
    assert train(*flags, "--ds_config", str(broken)) == 2
    assert "broken.json: not valid JSON" in capsys.readouterr().err

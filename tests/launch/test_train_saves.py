"""Saves of whole runs: a disk that is full on one rank, a folder that another run has, shards that
hold code, bits that flipped."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import Train, assert_same_weights, read_losses
from two_ranks import TrainOnTwo

from minimind.runtime.folder_lock import FolderLock

FULL_ONCE = """
import os, torch
whole = torch.save
def full(*arguments, **options):
    torch.save = whole
    raise OSError(28, "No space left on device")
if os.environ["RANK"] == "{rank}":
    torch.save = full
"""
"""A prelude after which the first shard of one rank cannot be written."""


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.faults("the disk is full on one of two ranks", "said at once on both; none hangs")
def test_a_disk_that_is_full_on_one_rank_is_said_at_once(
    train_on_two: TrainOnTwo, flags: list[str], tmp_path: Path, rank: int
):
    more = ["--max_steps", "4", "--save_every", "2", "--eval_every", "0"]
    said = train_on_two(*flags, *more, prelude=FULL_ONCE.format(rank=rank))
    assert "step 2 could not be written" in said
    assert f"rank {rank}: [Errno 28] No space left on device; training goes on" in said
    names = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert names == {"latest", "step-00000004"}


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.faults("the disk is full at the last save, two ranks", "both end and say so")
def test_a_disk_that_is_full_at_the_end_ends_both_ranks(
    train_on_two: TrainOnTwo, flags: list[str], tmp_path: Path, rank: int
):
    more = ["--max_steps", "1", "--eval_every", "0"]
    said = train_on_two(*flags, *more, prelude=FULL_ONCE.format(rank=rank), status=1)
    assert said.count(f"rank {rank}: [Errno 28] No space left on device") == 1
    assert "Traceback" not in said
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.faults("two runs in one folder", "the second is refused")
def test_a_run_whose_folder_another_one_has_is_refused(
    train: Train, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "run").mkdir()
    lock = FolderLock(tmp_path / "run")
    assert train(*flags) == 2
    assert "is writing a run into this folder" in capsys.readouterr().err
    lock.release()
    assert train(*flags, "--max_steps", "1") == 0
    lock = FolderLock(tmp_path / "run")
    assert train("--resume", "--output_dir", str(tmp_path / "run"), "--max_steps", "2") == 2
    assert "is writing a run into this folder" in capsys.readouterr().err
    lock.release()


class MakesFolder:
    """Is a pickle that makes a folder when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def put_code_into(shard: Path, path: Path) -> None:
    """Makes a shard make a folder when it is read, and puts its size into meta.json, as someone
    would who wants it to be read."""
    state = torch.load(shard, weights_only=False)
    torch.save(state | {"more": MakesFolder(path)}, shard)
    torch.load(shard, weights_only=False)
    assert path.exists(), "the code would run"
    path.rmdir()
    meta_file = shard.parents[1] / "meta.json"
    meta = json.loads(meta_file.read_text(encoding="utf-8"))
    meta["files"][f"engine/{shard.name}"] = shard.stat().st_size
    del meta["xxh3_128"]
    meta_file.write_text(json.dumps(meta), encoding="utf-8")


@pytest.mark.parametrize("shards", ["*model_states.pt", "*optim_states.pt"])
@pytest.mark.faults("code in a checkpoint's shards", "refused; it does not run")
def test_shards_that_hold_code_are_refused_and_the_code_is_not_run(
    train: Train,
    train_on_two: TrainOnTwo,
    flags: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    shards: str,
):
    assert train(*flags, "--max_steps", "1") == 0
    (shard,) = (tmp_path / "run" / "checkpoints" / "step-00000001" / "engine").glob(shards)
    put_code_into(shard, tmp_path / "ran")
    resume = ["--resume", "--output_dir", str(tmp_path / "run"), "--max_steps", "2"]
    assert train(*resume) == 2
    said = capsys.readouterr().err
    assert "reading its shards would run code (posix.mkdir)" in said
    assert "--from_checkpoint starts a new run" in said
    said = train_on_two(*resume, status=2)  # through DeepSpeed's converter
    assert "would run code (posix.mkdir)" in said
    assert not (tmp_path / "ran").exists()


@pytest.mark.faults("code in one rank's shard at ZeRO stage 3", "both refuse; none waits")
def test_a_shard_that_one_rank_refuses_is_refused_by_all(
    train_on_two: TrainOnTwo, flags: list[str], tmp_path: Path
):
    flags = [*flags, "--ds_config", "zero3.json", "--eval_every", "0"]
    train_on_two(*flags, "--max_steps", "1")
    engine = tmp_path / "run" / "checkpoints" / "step-00000001" / "engine"
    (shard,) = engine.glob("*pp_rank_1*optim_states.pt")
    put_code_into(shard, tmp_path / "ran")
    resume = ["--resume", "--output_dir", str(tmp_path / "run"), "--max_steps", "2"]
    said = train_on_two(*resume, status=2)
    assert "rank 1: " in said
    assert "would run code (posix.mkdir)" in said
    assert not (tmp_path / "ran").exists()


def cut_short(content: bytearray) -> None:
    del content[-100:]


def flip_a_bit(content: bytearray) -> None:
    content[len(content) // 2] ^= 0x40


@pytest.mark.parametrize("damage", [cut_short, flip_a_bit])
@pytest.mark.faults(
    "the newest checkpoint is cut short or has a flipped bit", "named; the one before is resumed"
)
def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    train: Train,
    flags: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[bytearray], None],
):
    assert train(*flags, "--eval_every", "0") == 0
    shutil.copytree(tmp_path / "run", tmp_path / "whole", symlinks=True)
    newest = tmp_path / "run" / "checkpoints" / "step-00000006"
    (shard,) = newest.glob("engine/*optim_states.pt")
    content = bytearray(shard.read_bytes())
    damage(content)
    shard.write_bytes(content)
    capsys.readouterr()
    assert train("--resume", "--output_dir", str(tmp_path / "run")) == 0
    said = capsys.readouterr().err
    assert shard.name in said
    assert "resumed    from step 4" in said
    assert_same_weights(tmp_path / "whole", tmp_path / "run")


@pytest.mark.faults("--resume of a run killed before its first save", "starts again and says so")
def test_a_run_that_has_saved_nothing_yet_starts_again_and_says_so(
    train: Train, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert train(*flags, "--max_steps", "1") == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    capsys.readouterr()
    assert train("--resume", "--output_dir", str(tmp_path / "run")) == 0
    said = capsys.readouterr().err
    assert f"resumed    {tmp_path / 'run'} has no checkpoint yet: from the beginning" in said
    assert [step for step, *_ in read_losses(tmp_path / "run")] == [1]

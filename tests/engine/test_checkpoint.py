"""Checkpoint folders: what is in one, that it is whole or not there, how one is found again."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from fake_engine import FakeEngine
from small_models import random_model, small_config
from torch import Tensor

from minimind.engine import checkpoint as checkpoint_module
from minimind.engine.checkpoint import (
    Checkpoint,
    CheckpointStore,
    check_same_helpers,
    find_latest,
    load_checkpoint_meta,
    needs_universal,
)
from minimind.errors import CheckpointError, TrainingError
from minimind.lora.folder import find_model_folder
from minimind.model.state_dict import load_hf_folder
from minimind.runtime.ranks import Ranks

CONFIG = small_config()
META: dict[str, Any] = {
    **{"state": {"step": 0}, "stage": "pretrain", "model": {}, "recipe": {}, "ds_config": {}},
    **{"world_size": 1, "zero_stage": 2, "fingerprint": "data", "helpers_fingerprint": "teacher"},
}
SECOND_OF_TWO = Ranks(1, 1, 2)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(weights=dict(random_model(CONFIG).named_parameters()))


@pytest.fixture
def store(engine: FakeEngine, tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path, engine.typed, keep=2)


class Tokenizer:
    def save(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}", encoding="utf-8")


def save(store: CheckpointStore, step: int, is_best: bool = False) -> Path:
    return store.save(step, META | {"step": step}, CONFIG, Tokenizer().save, is_best=is_best)


def listing(folder: Path) -> dict[str, bytes]:
    """Reads every file below a folder, and every link's target."""
    return {
        str(path.relative_to(folder)): (
            os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
        )
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def test_a_checkpoint_holds_shards_model_and_tokenizer(
    store: CheckpointStore, engine: FakeEngine, tmp_path: Path
):
    folder = save(store, 7)
    assert folder == tmp_path / "step-00000007"
    files = listing(folder)
    meta = json.loads(files.pop("meta.json"))
    model = {f"model/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json")}
    assert files.keys() == {"engine/rank_0.pt", *model}
    assert meta.pop("files") == {name: len(content) for name, content in files.items()}
    assert meta == META | {"step": 7}
    config, weights = load_hf_folder(folder / "model")
    assert config == CONFIG
    assert weights.keys() == engine.weights.keys()
    assert all(torch.equal(weight, engine.weights[name]) for name, weight in weights.items())
    found = load_checkpoint_meta(folder)
    assert (found.folder, found.step) == (folder.resolve(), 7)


def test_a_stage_saves_what_it_trained_by_itself(engine: FakeEngine, tmp_path: Path):
    def save_adapter(folder: Path, weights: Mapping[str, Tensor]) -> Path:
        assert weights.keys() == engine.weights.keys()
        (folder / "adapter").mkdir()
        return folder / "adapter"

    folder = save(CheckpointStore(tmp_path, engine.typed, 2, save_adapter), 1)
    names = {"engine/rank_0.pt", "adapter/tokenizer.json"}
    assert listing(folder).keys() == {*names, "meta.json"}
    assert load_checkpoint_meta(folder).meta["files"].keys() == names


def test_the_description_reaches_the_disk_last(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    flushed: list[str] = []
    flush = checkpoint_module.flush_to_disk
    monkeypatch.setattr(
        checkpoint_module, "flush_to_disk", lambda path: (flush(path), flushed.append(path.name))
    )
    names = {Path(name).name for name in listing(save(store, 1))}
    *files, description, parent = flushed
    assert {*files, description} == names
    assert (description, parent) == ("meta.json", tmp_path.name)


def test_the_newest_stay_and_the_best(store: CheckpointStore, tmp_path: Path):
    def kept() -> list[str]:
        links = [os.readlink(tmp_path / name) for name in ("latest", "best")]
        steps = [path.name for path in store.list_steps()]
        assert {path.name for path in tmp_path.iterdir()} == {*steps, "latest", "best"}
        return [name[-1] for name in (*links, *steps)]

    (tmp_path / ".latest.new").symlink_to("what a run killed between two calls left")
    for step in range(1, 6):
        save(store, step, is_best=step == 2)
    assert kept() == ["5", "2", "2", "4", "5"]
    save(store, 6, is_best=True)
    assert kept() == ["6", "6", "5", "6"]


def test_the_same_step_saved_again_replaces_it(
    store: CheckpointStore, engine: FakeEngine, tmp_path: Path
):
    folder = save(store, 3)
    (folder / "of the first").touch()
    engine.steps = 9
    assert save(store, 3) == folder
    assert (folder / "engine" / "rank_0.pt").stat().st_size == 10
    assert not (folder / "of the first").exists()
    assert load_checkpoint_meta(folder).step == 3
    assert store.list_steps() == [folder]


@pytest.mark.faults("a checkpoint left unfinished by a kill", "removed at the next start")
def test_a_new_store_removes_what_was_left_unfinished(store: CheckpointStore, tmp_path: Path):
    save(store, 1)
    whole = listing(tmp_path)
    FakeEngine().save(tmp_path / ".unfinished-step-00000002")
    CheckpointStore(tmp_path, FakeEngine(SECOND_OF_TWO).typed, keep=2)
    assert listing(tmp_path) != whole, "the first rank alone deletes"
    CheckpointStore(tmp_path, FakeEngine().typed, keep=2)
    assert listing(tmp_path) == whole
    assert not list(tmp_path.glob(".unfinished*"))


@pytest.mark.parametrize(
    ("where", "name", "error"),
    [
        (FakeEngine, "save", RuntimeError("No space left")),  # torch's where the disk is full
        (FakeEngine, "save", MemoryError()),
        (checkpoint_module, "save_hf_folder", OSError("No space left")),
        (Tokenizer, "save", OSError("No space left")),
        (checkpoint_module, "flush_to_disk", OSError("No space left")),
        (Path, "rename", OSError("No space left")),
    ],
)
@pytest.mark.faults("a save that fails", "the earlier checkpoints stay")
def test_a_save_that_fails_leaves_everything_as_it_was(
    store: CheckpointStore,
    monkeypatch: pytest.MonkeyPatch,
    where: object,
    name: str,
    error: Exception,
):
    save(store, 1, is_best=True)
    before = listing(store.folder)
    with monkeypatch.context() as patch:
        patch.setattr(where, name, Mock(side_effect=error))
        said = r"step 2 .*\d GB free there\): .*(No space left|MemoryError)"
        with pytest.raises(TrainingError, match=said):
            save(store, 2, is_best=True)
    assert listing(store.folder) == before
    assert not list(store.folder.glob(".unfinished*"))
    assert load_checkpoint_meta(save(store, 2)).step == 2


@pytest.mark.parametrize("ranks", [Ranks(0, 0, 2), SECOND_OF_TWO])
@pytest.mark.faults("a save that fails on another rank", "fails on all ranks")
def test_what_another_rank_cannot_write_fails_here_too(
    store: CheckpointStore, engine: FakeEngine, tmp_path: Path, ranks: Ranks
):
    save(store, 1)
    before = listing(tmp_path)
    engine.ranks, engine.others_say = ranks, ["disk full there\nand more lines"]
    with pytest.raises(TrainingError, match=r"step 2 .*: disk full there$"):
        save(store, 2)
    left = {".unfinished-step-00000002/engine/rank_1.pt": b"\0"}  # which the first rank removes
    assert listing(tmp_path) == before | ({} if ranks.is_main else left)


def test_a_rank_that_is_not_the_first_writes_its_shard_alone(
    store: CheckpointStore, engine: FakeEngine, tmp_path: Path
):
    engine.ranks = SECOND_OF_TWO
    assert save(store, 1, is_best=True) == tmp_path / "step-00000001"
    assert listing(tmp_path) == {".unfinished-step-00000001/engine/rank_1.pt": b"\0"}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("meta.json", None, "cannot be read: No such file"),
        *[
            ("meta.json", text.encode(), "not the description of a checkpoint")
            for text in ("{", "[]", "{}", '{"step": 1, "files": 5}', '{"files": {}}', "\0")
        ],
        ("engine/rank_0.pt", None, "missing from the checkpoint"),
        ("engine/rank_0.pt", b"\0\0", "2 bytes, but 1 were written"),
        ("model/model.safetensors", b"", "0 bytes, but"),
    ],
)
@pytest.mark.faults("a checkpoint with a file missing or cut", "the file is named")
def test_a_file_that_is_not_as_it_was_written_is_named(
    store: CheckpointStore, file: str, content: bytes | None, message: str
):
    folder = save(store, 1)
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"^{folder / file}: {message}"):
        load_checkpoint_meta(folder)


@pytest.mark.parametrize("name", META)
def test_a_description_without_what_resuming_needs_is_refused(tmp_path: Path, name: str):
    meta = {key: value for key, value in META.items() if key != name} | {"step": 1, "files": {}}
    (tmp_path / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"holds no {name}, .*--from_checkpoint"):
        load_checkpoint_meta(tmp_path)


def test_the_newest_whole_checkpoint_is_found(
    store: CheckpointStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    assert find_latest(tmp_path) is None
    assert find_latest(tmp_path / "nothing") is None
    first, second = save(store, 9), save(store, 10)
    assert find_latest(tmp_path) == load_checkpoint_meta(second)
    assert caplog.text == ""
    (second / "engine" / "rank_0.pt").unlink()
    assert find_latest(tmp_path) == load_checkpoint_meta(first)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"{second}/engine/rank_0.pt: missing from the checkpoint: passed over" in caplog.text
    (first / "meta.json").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint is whole: .*10/.*missing.*09/meta"):
        find_latest(tmp_path)


@pytest.mark.parametrize(
    ("folders", "path", "found"),
    [
        (["run/checkpoints/latest/model"], "run", "run/checkpoints/latest/model"),
        (
            ["run/checkpoints/latest/model", "run/checkpoints/best/adapter"],
            *("run", "run/checkpoints/best/adapter"),
        ),
        (["step-1/model"], "step-1", "step-1/model"),
        (["step-1/adapter"], "step-1", "step-1/adapter"),
        (["folder"], "folder", "folder"),
        (["run/checkpoints/step-1/model"], "run", None),
        ([], "nothing", None),
    ],
)
@pytest.mark.parametrize("file", ["config.json", "adapter_config.json"])
def test_a_model_folder_is_found_in_all_that_holds_one(
    tmp_path: Path, folders: list[str], path: str, found: str | None, file: str
):
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / file).touch()
    if found:
        assert find_model_folder(tmp_path / path) == tmp_path / found
        return
    with pytest.raises(CheckpointError, match=f"{tmp_path / path}: neither a run's folder, nor"):
        find_model_folder(tmp_path / path)


def test_shards_of_another_number_of_ranks_are_converted():
    for zero_stage, world_size, expected in ((2, 1, False), (2, 2, True), (0, 2, False)):
        checkpoint = Checkpoint(Path("step"), META | {"zero_stage": zero_stage})
        assert needs_universal(checkpoint, world_size, zero_stage, {}) == expected


def test_another_layout_of_the_shards_is_refused():
    checkpoint, bf16 = Checkpoint(Path("step"), META), {"bf16": {"enabled": True}}
    with pytest.raises(CheckpointError, match="ZeRO stage 2 and cannot be resumed under 1"):
        needs_universal(checkpoint, 1, 1, {})
    with pytest.raises(CheckpointError, match="precision fp32 and cannot be resumed under bf16"):
        needs_universal(checkpoint, 1, 2, bf16)


def test_a_teacher_with_other_weights_is_refused():
    checkpoint = Checkpoint(Path("step"), META)
    check_same_helpers(checkpoint, "teacher")
    with pytest.raises(CheckpointError, match="step was trained beside other weights"):
        check_same_helpers(checkpoint, "another")

"""How checkpoints are found again, and what is wrong with those that are refused."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from saved_checkpoints import META, save

from minimind.engine.checkpoint import (
    Checkpoint,
    check_same_helpers,
    find_latest,
    load_checkpoint_meta,
    needs_conversion,
)
from minimind.engine.checkpoint_store import CheckpointStore
from minimind.errors import CheckpointError
from minimind.lora.folder import find_model_folder
from minimind.runtime.digests import DIGESTS


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
@pytest.mark.faults("a checkpoint with a file missing, cut or changed", "the file is named")
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


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("state", [], "state is"),
        ("step", "1", "step is '1'; it must be a valid integer"),
        ("model", None, "model is None"),
        ("world_size", 1.5, "world_size is 1.5"),
        ("files", {"a": "b"}, r"files\[a\] is 'b'"),
        ("ds_config", {"optimizer": "AdamW"}, r"ds_config\[optimizer\] is 'AdamW'"),
    ],
)
@pytest.mark.faults("a checkpoint's description with values of other types", "the field is named")
def test_a_description_with_other_types_is_refused(
    tmp_path: Path, name: str, value: object, message: str
):
    meta = META | {"step": 1, "files": {}} | {name: value}
    (tmp_path / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"meta.json: not the description.*: {message}"):
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
    assert (
        f"{second}/engine/rank_0.pt: missing from the checkpoint: passed over, the" in caplog.text
    )
    (first / "meta.json").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint is whole: .*10/.*missing.*09/meta"):
        find_latest(tmp_path)


@pytest.mark.faults("a checkpoint's description that names other files", "refused; none is read")
@pytest.mark.parametrize("name", ["/dev/zero", "../x", "pipe", "a" * 300, "a\0b"])
def test_digests_of_what_is_no_file_of_a_checkpoint(store: CheckpointStore, name: str):
    """Reading of a device or a pipe may never end."""
    folder = save(store, 1)
    os.mkfifo(folder / "pipe")
    (folder.parent / "x").write_text("a stranger's")
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {DIGESTS: {name: "0"}}))
    with pytest.raises(CheckpointError, match=r"no file of it|no name of a file|cannot be read"):
        find_latest(folder.parent)
    (folder / "meta.json").write_text(json.dumps(meta | {"files": {name: 1}}))
    with pytest.raises(CheckpointError, match=r"missing from the checkpoint|bytes, but 1 were"):
        find_latest(folder.parent)


def test_one_from_before_a_step_is_found_if_there_is_one(store: CheckpointStore, tmp_path: Path):
    first, second = save(store, 9), save(store, 10)
    for before, expected in ((11, second), (10, first), (9, second), (None, second)):
        assert find_latest(tmp_path, before) == load_checkpoint_meta(expected)
    (first / "meta.json").unlink()
    assert find_latest(tmp_path, before=10) == load_checkpoint_meta(second)


@pytest.mark.parametrize("file", ["engine/rank_0.pt", "model/model.safetensors"])
def test_a_flipped_bit_is_named_and_the_checkpoint_before_it_is_used(
    store: CheckpointStore, tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str
):
    first, second = save(store, 1), save(store, 2)
    content = bytearray((second / file).read_bytes())
    content[len(content) // 2] ^= 1
    (second / file).write_bytes(content)
    assert find_latest(tmp_path) == load_checkpoint_meta(first)
    assert f"{second / file}: damaged: its size is right" in caplog.text
    assert "passed over, the checkpoint before it is used" in caplog.text


def test_a_checkpoint_without_digests_is_found(store: CheckpointStore, tmp_path: Path):
    path = save(store, 1) / "meta.json"
    meta = json.loads(path.read_text(encoding="utf-8"))
    del meta[DIGESTS]
    path.write_text(json.dumps(meta), encoding="utf-8")
    assert find_latest(tmp_path) == load_checkpoint_meta(path.parent)


@pytest.mark.parametrize("digests", [5, "abc", ["abc"]])
def test_digests_that_are_none_are_named(store: CheckpointStore, tmp_path: Path, digests: object):
    path = save(store, 1) / "meta.json"
    meta = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(meta | {DIGESTS: digests}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"meta\.json holds no digests"):
        find_latest(tmp_path)


def test_a_users_copies_are_not_found(
    store: CheckpointStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    first = save(store, 1)
    for name in ("step-good", "step-1-old", "step-00000009", "step-000000009"):
        shutil.copytree(first, tmp_path / name)
    assert find_latest(tmp_path) == load_checkpoint_meta(first)
    assert f"{tmp_path}/step-00000009: a copy of the checkpoint of step 1" in caplog.text
    shutil.rmtree(tmp_path / "step-00000009")
    shutil.rmtree(first)
    assert find_latest(tmp_path) is None


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


def test_shards_of_another_layout_are_converted():
    def needs(saved: int, world_size: int, zero_stage: int, **ds_config: Any) -> bool:
        checkpoint = Checkpoint(Path("step"), META | {"zero_stage": saved})
        return needs_conversion(checkpoint, world_size, zero_stage, ds_config)

    assert not needs(2, 1, 2)
    assert needs(2, 2, 2), "another number of ranks"
    assert not needs(0, 2, 0), "every rank has all"
    assert needs(2, 1, 1), "another stage"
    assert needs(2, 1, 2, bf16={"enabled": True}), "another precision"


def test_states_of_another_optimizer_are_refused():
    lion = {"optimizer": {"type": "Lion"}}
    saved = META | {"ds_config": {"optimizer": {"type": "AdamW"}}}
    with pytest.raises(CheckpointError, match="optimizer AdamW and cannot be resumed with Lion"):
        needs_conversion(Checkpoint(Path("step"), saved), 1, 2, lion)


def test_a_teacher_with_other_weights_is_refused():
    checkpoint = Checkpoint(Path("step"), META)
    check_same_helpers(checkpoint, "teacher")
    with pytest.raises(CheckpointError, match="step was trained beside other weights"):
        check_same_helpers(checkpoint, "another")

"""How checkpoints are written: whole or not there, on all ranks or on none, in the background."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from fake_engine import FakeEngine
from saved_checkpoints import CONFIG, META, SECOND_OF_TWO, FakeTokenizer, begin, listing, save
from torch import Tensor

from minimind.engine import checkpoint_store, publish
from minimind.engine.checkpoint import load_checkpoint_meta
from minimind.engine.checkpoint_store import CheckpointStore
from minimind.errors import TrainingError
from minimind.model.state_dict import load_hf_folder
from minimind.runtime.digests import DIGESTS
from minimind.runtime.ranks import Ranks


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
    assert meta[DIGESTS].keys() == files.keys()
    # XXH3's published value for one zero byte.
    assert meta.pop(DIGESTS)["engine/rank_0.pt"] == "a6cd5e9392000f6ac44bdff4074eecdb"
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


def test_a_save_goes_on_while_the_run_trains_and_only_one_at_a_time(
    engine: FakeEngine, tmp_path: Path
):
    may_write, saved = threading.Event(), []

    def wait(folder: Path, _: Mapping[str, Tensor]) -> Path:
        may_write.wait(timeout=60)
        (folder / "model").mkdir()
        return folder / "model"

    store = CheckpointStore(
        tmp_path, engine.typed, 2, wait, saved=lambda path, _: saved.append(path.name)
    )
    first = begin(store, 1)
    assert not first.exists()
    assert (tmp_path / ".unfinished-step-00000001" / "engine" / "rank_0.pt").exists()
    threading.Timer(0.1, may_write.set).start()
    engine.steps = 5  # what is saved is the state of the call
    second = begin(store, 2)
    assert first.exists(), "the second save waits for the first"
    assert (first / "engine" / "rank_0.pt").stat().st_size == 1
    store.confirm()
    assert second.exists()
    assert saved == ["step-00000001", "step-00000002"]


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
        (FakeEngine, "full_weights", MemoryError()),
        (FakeEngine, "save", OSError("No space left")),
        (FakeEngine, "save", MemoryError()),
        (checkpoint_store, "save_hf_folder", OSError("No space left")),
        (FakeTokenizer, "save", OSError("No space left")),
        (checkpoint_store, "flush_to_disk", OSError("No space left")),
        (publish, "flush_to_disk", OSError("No space left")),
        (publish, "_fresh_link", OSError("No space left")),
        (Path, "mkdir", OSError("No space left")),
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


@pytest.mark.parametrize(
    "words",
    [
        "[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0",
        "PytorchStreamWriter failed writing file data/0: file write failed",
    ],
)
def test_a_full_disk_is_named_in_plain_words(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, words: str
):
    monkeypatch.setattr(FakeEngine, "save", Mock(side_effect=RuntimeError(words)))
    with pytest.raises(TrainingError, match=r"\): a shard could not .*: the disk is full, or"):
        save(store, 1)


@pytest.mark.parametrize("ranks", [Ranks(0, 0, 2), SECOND_OF_TWO])
@pytest.mark.parametrize("when", ["others_say", "others_say_later"])
@pytest.mark.faults("a save that fails on another rank", "fails on all ranks")
def test_what_another_rank_cannot_write_fails_here_too(
    store: CheckpointStore, engine: FakeEngine, tmp_path: Path, ranks: Ranks, when: str
):
    save(store, 1)
    before = listing(tmp_path)
    engine.ranks = ranks
    setattr(engine, when, ["rank 7: disk full there\nand more lines"])
    with pytest.raises(TrainingError, match=r"step 2 .*: rank 7: disk full there$"):
        save(store, 2)
    left = {".unfinished-step-00000002/engine/rank_1.pt": b"\0"}  # which the first rank removes
    is_written = not ranks.is_main and when == "others_say_later"
    assert listing(tmp_path) == before | (left if is_written else {})


def test_ranks_do_the_same_calls_whichever_of_them_fails(
    store: CheckpointStore, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
):
    calls: list[str] = []

    def counted(name: str) -> Callable[[list[str]], list[str]]:
        return lambda texts: calls.append(name) or texts  # type: ignore[func-returns-value]

    monkeypatch.setattr(engine, "gather_texts", counted("together"))
    monkeypatch.setattr(engine, "gather_apart", counted("apart"))
    engine.ranks = SECOND_OF_TWO
    save(store, 1)
    assert calls == ["together", "together", "apart", "apart"]
    calls.clear()
    monkeypatch.setattr(FakeEngine, "save", Mock(side_effect=OSError("No space left")))
    with pytest.raises(TrainingError, match="rank 1: No space left"):
        save(store, 2)
    assert calls == ["together", "together"]


def test_a_rank_that_is_not_the_first_writes_its_shard_alone(
    store: CheckpointStore, engine: FakeEngine, tmp_path: Path
):
    engine.ranks = SECOND_OF_TWO
    save(store, 1, is_best=True)
    assert listing(tmp_path) == {".unfinished-step-00000001/engine/rank_1.pt": b"\0"}


def test_a_run_that_ends_for_another_reason_waits_for_its_save(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    folder = begin(store, 1)
    store.close()
    assert load_checkpoint_meta(folder).step == 1
    monkeypatch.setattr(FakeTokenizer, "save", Mock(side_effect=OSError("No space left")))
    begin(store, 2)
    store.close()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "step 2 could not be written" in caplog.text

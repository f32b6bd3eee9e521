"""How a written checkpoint comes to its place, and which older ones stay."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fake_engine import FakeEngine
from saved_checkpoints import listing, save

from minimind.engine import checkpoint_store, publish
from minimind.engine.checkpoint import load_checkpoint_meta
from minimind.engine.checkpoint_store import CheckpointStore
from minimind.errors import TrainingError


def test_every_file_folder_and_link_is_on_disk_before_it_counts(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    done: list[str] = []
    flush, rename = publish.flush_to_disk, Path.rename

    def flushed(path: Path) -> None:
        flush(path)
        done.append(path.name)

    def renamed(path: Path, target: Path) -> Path:
        done.append(f"-> {target.name}")
        return rename(path, target)

    monkeypatch.setattr(publish, "flush_to_disk", flushed)
    monkeypatch.setattr(checkpoint_store, "flush_to_disk", flushed)
    monkeypatch.setattr(Path, "rename", renamed)
    names = {Path(name).name for name in listing(save(store, 1))}
    place = done.index("-> step-00000001")
    description = done.index("meta.json")
    assert {*done[:description], "meta.json"} == names
    folders = {"engine", "model", ".unfinished-step-00000001"}
    assert set(done[description + 1 : place]) == folders
    # Once for the new name, once for the links.
    assert done[place + 1 :] == [tmp_path.name, tmp_path.name]


def test_the_newest_stay_and_the_best(store: CheckpointStore, tmp_path: Path):
    def kept() -> list[str]:
        links = [(tmp_path / name).readlink().name for name in ("latest", "best")]
        steps = sorted(path.name for path in tmp_path.glob("step-*"))
        assert {path.name for path in tmp_path.iterdir()} == {*steps, "latest", "best"}
        return [name[-1] for name in (*links, *steps)]

    (tmp_path / ".latest.new").symlink_to("what a run killed between two calls left")
    for step in range(1, 6):
        save(store, step, is_best=step == 2)
    assert kept() == ["5", "2", "2", "4", "5"]
    save(store, 6, is_best=True)
    assert kept() == ["6", "6", "5", "6"]


def test_each_so_many_steps_one_stays_for_good(engine: FakeEngine, tmp_path: Path):
    store = CheckpointStore(tmp_path, engine.typed, keep=1, keep_every=4)
    for step in range(2, 13, 2):
        save(store, step)
    assert [path.name[-2:] for path in sorted(tmp_path.glob("step-*"))] == ["04", "08", "12"]


@pytest.mark.faults(
    "a user's copies among the checkpoints of a run that goes on", "stay, and count for nothing"
)
def test_a_users_copies_stay_and_count_for_nothing(
    store: CheckpointStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    first = save(store, 1)
    copies = ["step-good", "step-1-before-lr-change", "step-00000003", "step-000000001"]
    for name in copies:
        (tmp_path / name).mkdir()
        for file, content in listing(first).items():
            (tmp_path / name / file).parent.mkdir(exist_ok=True)
            (tmp_path / name / file).write_bytes(content)
    whole = {name: listing(tmp_path / name) for name in copies}
    for step in (2, 3, 4):
        save(store, step)
    names = {path.name for path in tmp_path.glob("step-*")}
    (moved,) = names - {*copies, "step-00000003", "step-00000004"}
    assert moved.startswith("step-00000003-copy-")
    assert f"a copy of another step; it is now {tmp_path / moved}" in caplog.text
    whole[moved] = whole.pop("step-00000003")
    assert {name: listing(tmp_path / name) for name in whole} == whole
    assert load_checkpoint_meta(tmp_path / "step-00000003").step == 3


def test_a_run_that_was_copied_without_its_links_goes_on(
    store: CheckpointStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    first = save(store, 1)
    (tmp_path / "latest").unlink()
    shutil.copytree(first, tmp_path / "latest")
    second = save(store, 2)
    assert (tmp_path / "latest").resolve() == second
    (moved,) = tmp_path.glob("latest-copy-*")
    assert listing(moved) == listing(first)
    assert f"it is now {moved}" in caplog.text


def test_damaged_checkpoints_do_not_take_the_place_of_whole_ones(
    store: CheckpointStore, tmp_path: Path
):
    for step in (1, 2, 9):
        save(store, step)
    (tmp_path / "step-00000009" / "engine" / "rank_0.pt").unlink()
    save(store, 3)
    assert sorted(path.name[-1] for path in tmp_path.glob("step-*")) == ["2", "3", "9"]
    save(store, 9)
    assert load_checkpoint_meta(tmp_path / "step-00000009").step == 9
    assert sorted(path.name[-1] for path in tmp_path.glob("step-*")) == ["3", "9"]


def test_the_same_step_saved_again_replaces_it(store: CheckpointStore, engine: FakeEngine):
    folder = save(store, 3)
    (folder / "of the first").touch()
    engine.steps = 9
    assert save(store, 3) == folder
    assert (folder / "engine" / "rank_0.pt").stat().st_size == 10
    assert not (folder / "of the first").exists()
    assert load_checkpoint_meta(folder).step == 3
    assert {path.name for path in store.folder.iterdir()} == {folder.name, "latest"}


def test_a_step_that_cannot_be_saved_again_stays(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
):
    folder = save(store, 3)
    before, rename = listing(folder), Path.rename

    def fail(path: Path, target: Path) -> Path:
        if path.name == ".unfinished-step-00000003":
            raise OSError("No space left")
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail)
        with pytest.raises(TrainingError, match="No space left"):
            save(store, 3)
    assert listing(folder) == before

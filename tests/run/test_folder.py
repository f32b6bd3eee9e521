"""The folder of a run: which one is taken, and what --resume finds in it."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from minimind.errors import ConfigError
from minimind.run import Run
from minimind.run.folder import RUN_FILE, check_folder, merge_earlier, open_folder
from minimind.run.resolve import ResolvedRun


@pytest.fixture
def resolve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ResolvedRun]:
    monkeypatch.chdir(tmp_path)
    return lambda **options: Run.resolve(model="tiny", **options).resolved


@pytest.mark.faults("two runs start at once without a folder", "each gets its own")
def test_runs_that_start_at_once_get_folders_of_their_own(resolve: Callable[..., ResolvedRun]):
    run = resolve()
    Path("runs/pretrain-tiny-2").mkdir(parents=True)
    assert check_folder(run) == Path("runs/pretrain-tiny-1")
    with ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(lambda _: open_folder(run), range(16)))
    numbers = sorted(int(folder.name.rpartition("-")[2]) for folder, _ in opened)
    assert numbers == [1, *range(3, 18)]
    for folder, lock in opened:
        assert (folder / RUN_FILE).exists()
        lock.release()


def test_a_folder_that_another_run_has_is_refused(resolve: Callable[..., ResolvedRun]):
    _, lock = open_folder(resolve(output_dir="mine", seed=1))
    before = Path("mine/run.json").read_bytes()
    with pytest.raises(ConfigError, match=r"mine: process .* is writing a run into this folder"):
        open_folder(resolve(output_dir="mine", seed=2))
    assert Path("mine/run.json").read_bytes() == before
    lock.release()
    open_folder(resolve(output_dir="mine", seed=2))[1].release()
    assert Path("mine/run.json").read_bytes() != before


@pytest.mark.faults("a user's copies beside the checkpoints", "are no checkpoints")
def test_only_checkpoints_make_a_folder_that_of_a_run(resolve: Callable[..., ResolvedRun]):
    for name in ("step-good", "step-00000001-copy"):
        Path("mine/checkpoints", name).mkdir(parents=True)
    assert check_folder(resolve(output_dir="mine")) == Path("mine")
    Path("mine/checkpoints/step-00000001").mkdir()
    with pytest.raises(ConfigError, match="already holds a run's checkpoints"):
        check_folder(resolve(output_dir="mine"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("runs/frist", "is not there (did you mean runs/first?)"),
        ("runs", "has no run.json, but these in it have: first, other"),
        ("bare", "has no run.json (it holds a, b, c, d, e and 1 more)"),
        ("empty", "has no run.json and is empty"),
    ],
)
@pytest.mark.faults("--resume where nothing is to be resumed", "refused, with what is there")
def test_where_there_is_nothing_to_resume_the_error_says_what_is_there(
    resolve: Callable[..., ResolvedRun], given: str, said: str
):
    for name in ("first", "other"):
        open_folder(resolve(output_dir=f"runs/{name}"))[1].release()
    Path("runs/notes").mkdir()
    for name in ("bare/a", "bare/b", "bare/c", "bare/d", "bare/e", "bare/f", "empty"):
        Path(name).mkdir(parents=True)
    arguments = resolve(output_dir=given).arguments
    said = f"--resume --output_dir {given}: no run to go on with, as the folder {said}; without"
    with pytest.raises(ConfigError, match=re.escape(said)):
        merge_earlier(arguments)

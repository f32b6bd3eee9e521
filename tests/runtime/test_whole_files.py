"""Files are whole or not there."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from minimind.runtime.whole_files import write_whole


def test_the_new_file_takes_the_place_of_the_old_one_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "made" / "a.txt"
    for text in ("old", "new"):
        with write_whole(path) as new:
            new.write_text(text, "utf-8")
            assert new.name.startswith(".")
            assert path.exists() is (text == "new")
        assert path.read_text("utf-8") == text
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_an_error_all_is_as_it_was(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old", "utf-8")

    def fail_half_way() -> None:
        with write_whole(path) as new:
            new.write_text("half of", "utf-8")
            raise error

    with pytest.raises(error):
        fail_half_way()
    assert path.read_text("utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_that_write_one_file_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with write_whole(path) as first, write_whole(path) as second:
        first.write_text("first", "utf-8")
        second.write_text("second", "utf-8")
    assert path.read_text("utf-8") == "first"  # left last
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_names_the_file_that_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with pytest.raises(OSError, match=r"No space left on device: .*/a\.txt'$") as full:  # noqa: SIM117
        with write_whole(path):
            raise OSError(errno.ENOSPC, "No space left on device")
    assert full.value.errno == errno.ENOSPC
    path.write_text("a file", "utf-8")
    with pytest.raises(OSError, match=r"/a\.txt"), write_whole(path / "b.txt"):
        pass
    tmp_path.joinpath("folder").mkdir()
    with pytest.raises(IsADirectoryError, match=r"/folder'$"):  # noqa: SIM117
        with write_whole(tmp_path / "folder") as new:
            new.write_text("a file", "utf-8")
    with pytest.raises(FileNotFoundError, match="another"), write_whole(tmp_path / "c.txt"):
        (tmp_path / "another").read_text("utf-8")
    assert {p.name for p in tmp_path.iterdir()} == {"a.txt", "folder"}

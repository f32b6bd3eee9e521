"""Folders, records and links of results."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from minimind.errors import CheckpointError, ConfigError
from minimind.pipeline.results import (
    RECORD_FILE,
    Record,
    describe_changes,
    find_target,
    load_record,
    point_link,
)
from minimind.pipeline.step import Checked, Inputs, Place, Results, Step


class Given(Step):
    """A step whose inputs are given."""

    verb = "given"
    title = "a test"

    def __init__(self, inputs: Inputs) -> None:
        super().__init__("chat", (), "step 1")
        self.given = inputs

    def inputs(self, results: Results, place: Place) -> Inputs:
        return self.given

    def check(self, results: Results, place: Place) -> Checked:
        return Checked()

    def flags(self, results: Results, folder: Path) -> list[str]:
        return []

    def is_complete(self, folder: Path) -> bool:
        return (folder / "result").exists()


def test_a_result_is_found_by_its_inputs(place: Place):
    def find(**inputs: object):
        return find_target(Given(inputs), {}, place)

    first = find(epochs=1, betas=(0.9, 0.95))
    assert first.state == "to make"
    record = Record(step="chat", inputs=first.inputs)
    record.save(first.folder)
    assert find(epochs=1, betas=(0.9, 0.95)).state == "begun"
    record.is_finished = True
    record.save(first.folder)
    assert not find(epochs=1, betas=(0.9, 0.95)).is_done, "its files are not there"
    (first.folder / "result").touch()
    assert find(betas=[0.9, 0.95], epochs=1).is_done, "the order of names does not matter"
    other = find(epochs=2, betas=(0.9, 0.95))
    assert other.folder != first.folder
    assert other.state == "to make again: epochs 1 -> 2"
    assert other.earlier is not None
    assert other.earlier[0] == first.folder


def test_changes_are_named_and_contents_only_by_name():
    before = {"a": 1, "b": [1], "content of x": ["1"], "c": None, "d": 1}
    after = {"a": 1, "b": [2], "content of x": ["2"], "c": "text", "d": 2}
    said = describe_changes(before, after)
    assert said == "b [1] -> [2], content of x, c none -> text and 1 more"


def test_a_link_moves_and_leaves_what_is_no_link(tmp_path: Path):
    for name in ("chat-1", "chat-2", "chat-2"):
        (tmp_path / name).mkdir(exist_ok=True)
        point_link(tmp_path / name, "chat")
        assert os.readlink(tmp_path / "chat") == name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chat", "chat-1", "chat-2"]
    (tmp_path / "own").mkdir()
    with pytest.raises(ConfigError, match="own: is not a link of this pipeline; move it away"):
        point_link(tmp_path / "chat-1", "own")


def test_an_attempt_that_was_killed_took_until_its_last_file(tmp_path: Path):
    record = Record(step="chat", inputs={})
    record.begin()
    (tmp_path / "metrics.csv").touch()
    newest = (tmp_path / "metrics.csv").stat().st_mtime
    os.utime(tmp_path / "metrics.csv", (newest + 90, newest + 90))
    record.close_killed(tmp_path)
    assert record.seconds == pytest.approx(90, abs=5)


def test_a_damaged_record_is_named(tmp_path: Path):
    assert load_record(tmp_path) is None
    for text in ("{", '{"step": "a"}', "[]"):
        (tmp_path / RECORD_FILE).write_text(text)
        with pytest.raises(CheckpointError, match=r"step\.json: cannot be read .* is made again"):
            load_record(tmp_path)

"""samples.jsonl: what a resumed run keeps of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minimind.engine.sample_log import SampleLog, spell_sample

ODD = "a\u2028b\x85c\x0bd\n塔恩"
"""Text with line ends of other kinds than the file's."""


def write(folder: Path, *steps: int) -> None:
    log = SampleLog(folder, 0)
    for step in steps:
        log.write(step, [{"prompt": ODD, "reward": step / 2}, {"prompt": "q", "reward": None}])


def read(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "samples.jsonl").read_text("utf-8")
    assert text.endswith("\n")
    return [json.loads(line) for line in text.split("\n")[:-1]]


def test_each_sample_is_a_line(tmp_path: Path):
    write(tmp_path, 1, 2)
    assert [(one["step"], one["prompt"], one["reward"]) for one in read(tmp_path)] == [
        (1, ODD, 0.5), (1, "q", None), (2, ODD, 1.0), (2, "q", None),
    ]  # fmt: skip
    assert "塔恩" in (tmp_path / "samples.jsonl").read_text("utf-8")


def test_without_samples_there_is_no_file(tmp_path: Path):
    SampleLog(tmp_path, 3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("step", "kept"), [(0, []), (2, [1, 2]), (3, [1, 2, 3]), (9, [1, 2, 3])])
def test_a_resumed_run_drops_what_it_makes_again(tmp_path: Path, step: int, kept: list[int]):
    write(tmp_path, 1, 2, 3)
    SampleLog(tmp_path, step).write(step + 1, [{"prompt": "more"}])
    lines = read(tmp_path)
    assert [one["step"] for one in lines] == [s for s in kept for _ in range(2)] + [step + 1]
    assert all(one["prompt"] == ODD for one in lines[:-1:2])
    assert [path.name for path in tmp_path.iterdir()] == ["samples.jsonl"]


def test_a_line_that_was_cut_off_anywhere_is_dropped(tmp_path: Path):
    """In the middle of a character too."""
    path = tmp_path / "samples.jsonl"
    write(tmp_path, 1)
    first = path.read_bytes()
    whole = first + first
    for length in range(len(first), len(whole) - 1):
        path.write_bytes(whole[:length])
        SampleLog(tmp_path, 5)
        lines = read(tmp_path)
        assert [one["step"] for one in lines[:2]] == [1, 1]
        # A line that lacks its end alone is whole.
        assert path.read_bytes() == whole[: whole.rfind(b"\n", 0, length + 1) + 1]


def test_a_sample_for_the_console_is_one_line():
    sample = {"prompt": "What\nis 2?", "completion": "It  is\n2.", "reward": 0.5}
    assert spell_sample(sample) == "What is 2? → It is 2.  (reward 0.5)"
    assert spell_sample({**sample, "reward": None}) == "What is 2? → It is 2."

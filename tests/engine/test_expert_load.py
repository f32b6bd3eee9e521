"""expert_load.csv and its heat map."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from minimind.engine.expert_load import ExpertLoadLog, read_expert_load


def load_at(step: int) -> dict[int, list[float]]:
    """Layers 1 and 3 of two experts."""
    return {1: [0.5, 0.5], 3: [step % 8 / 8, 1 - step % 8 / 8]}


def written(folder: Path, steps: range, start: int = 0) -> ExpertLoadLog:
    log = ExpertLoadLog(folder, start)
    for step in steps:
        log.write(step, load_at(step))
    return log


def test_what_is_written_is_read_and_drawn(tmp_path: Path):
    log = written(tmp_path, range(1, 7))
    text = (tmp_path / "expert_load.csv").read_text().splitlines()
    assert text[:3] == [
        "step,layer,expert_0,expert_1",
        "1,1,0.50000,0.50000",
        "1,3,0.12500,0.87500",
    ]
    expected = {step: load_at(step) for step in range(1, 7)}
    assert read_expert_load(tmp_path / "expert_load.csv") == expected
    log.plot()
    picture = tmp_path / "expert_load.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*.new*"))


def test_a_dense_model_leaves_nothing(tmp_path: Path):
    log = ExpertLoadLog(tmp_path, 0)
    log.write(1, {})
    log.plot()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("last", [256, 257, 1000, 5000])
def test_a_long_run_is_thinned_evenly(tmp_path: Path, last: int):
    written(tmp_path, range(1, last + 1))
    steps = sorted(read_expert_load(tmp_path / "expert_load.csv"))
    (gap,) = {b - a for a, b in itertools.pairwise(steps)}
    assert steps[0] == gap
    assert 120 <= len(steps) <= 256
    assert last - steps[-1] < 2 * gap
    lines = (tmp_path / "expert_load.csv").read_text().count("\n")
    assert lines < 2 * 1000


def test_a_resumed_run_makes_the_steps_after_its_checkpoint_again(tmp_path: Path):
    written(tmp_path, range(1, 400))
    whole = (tmp_path / "expert_load.csv").read_bytes()
    written(tmp_path, range(301, 400), start=300)
    assert (tmp_path / "expert_load.csv").read_bytes() == whole
    written(tmp_path, range(1, 2), start=0).plot()
    assert list(read_expert_load(tmp_path / "expert_load.csv")) == [1]


def test_a_row_that_was_cut_off_anywhere_is_dropped(tmp_path: Path):
    """Else step 3 might be read where 300 was cut off."""
    path = tmp_path / "expert_load.csv"
    written(tmp_path, range(1, 3))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        ExpertLoadLog(tmp_path, 2)
        kept = whole[: whole.rfind(b"\n", 0, length) + 1]
        assert (path.read_bytes() if path.exists() else b"") == kept


def test_one_step_and_many_layers_are_drawn(tmp_path: Path):
    log = ExpertLoadLog(tmp_path, 0)
    log.write(1, {layer: [1 / 64] * 64 for layer in range(50)})
    log.plot()
    assert (tmp_path / "expert_load.png").stat().st_size > 1000

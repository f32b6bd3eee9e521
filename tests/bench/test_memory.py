"""bench.memory: the components of a prediction, and how a measurement is held against it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import memory
from minimind.rehearsal.rehearse import rehearse

SMALL = ["--model", "tiny", "--seq_len", "64", "--micro_batch", "2", "--accumulation", "2"]


def test_a_row_for_each_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "memory.json"
    names = ["zero0.json", "zero3.json"]
    assert memory.main([*SMALL, "--ds_config", *names, "--num_gpus", "4", "--json", str(path)]) == 0
    rows = json.loads(path.read_text())["rows"]
    assert [row["ds_config"] for row in rows] == names
    for row in rows:
        parts = dict(row["predicted"])
        assert parts.pop("peak_bytes") == sum(parts.values())
        assert row["world_size"] == 4
    assert rows[0]["predicted"]["optimizer"] > 3 * rows[1]["predicted"]["optimizer"]
    assert "not measured" in capsys.readouterr().out


def test_a_prediction_that_is_off_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    device = memory.find_device()
    options = memory.build_parser().parse_args(SMALL)
    rehearsed = rehearse(memory.resolve(options, "zero2.json", device))
    monkeypatch.setattr(memory, "rehearse_all", lambda points: [rehearsed for _ in points])
    for share, status in ((1.04, 0), (1.06, 1)):
        peaks = {"zero2.json": int(rehearsed.peak_bytes / share)}
        monkeypatch.setattr(memory, "_measure", lambda runs, peaks=peaks: peaks)
        assert memory.main([*SMALL, "--measure"]) == status


def test_a_rehearsal_and_a_measurement_are_of_one_step(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    flags = ["--set", "num_hidden_layers=1", "--measure", "--within", "0.01"]
    assert memory.main([*SMALL, *flags, "--json", str(path)]) == 0
    (row,) = json.loads(path.read_text())["rows"]
    assert row["predicted"]["peak_bytes"] == pytest.approx(row["peak_bytes"], rel=0.01)


def test_several_ranks_are_not_measured_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert memory.main([*SMALL, "--measure", "--num_gpus", "2"]) == 2
    assert "bench.scaling measures several" in capsys.readouterr().err

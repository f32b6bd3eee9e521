"""Curves of loss: every row's held-out loss is the same figure, and its clock is training's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench.report import plots as report_plots
from bench.results import Results
from bench.train import loss_curves
from bench.train.documents import Documents
from bench.train.loss_curves import CurveRow, build_parser
from bench.train.specs import build_specs
from minimind.runtime.devices import find_device

SMALL = ["--model", "tiny", "--accumulation", "2", "--micro_batch", "2", "--seq_len", "64"]
SMALL += ["--document_tokens", "32", "--original_batch", "4"]
SMALL += ["--set", "num_hidden_layers=1", "--set", "hidden_size=32"]


def curve_rows(folder: Path, names: list[str]) -> list[CurveRow]:
    options = build_parser().parse_args(["--json", str(folder / "a.json"), *SMALL])
    options.steps = 20
    specs = build_specs(options, "tiny", names, find_device(), folder)
    return [CurveRow(spec) for spec in specs]


def make_held_out() -> Documents:
    random = np.random.default_rng(0)
    ids = [random.integers(3, 500, size=n) for n in random.integers(2, 33, size=21)]
    return Documents(ids=ids, max_tokens=32, pad_id=0, seed=0)


@pytest.mark.usefixtures("fp32")
def test_padded_and_packed_rows_have_one_held_out_loss(tmp_path: Path) -> None:
    losses, held_out = [], make_held_out()
    for row in curve_rows(tmp_path, ["original", "plain_loop"]):
        assert row.build()["precision"] == "fp32"
        losses.append(row.held_out_loss(held_out))
        first = row.train(1e-9)
        assert first["steps"] == 1, "a step that began is finished"
        assert row.train(first["seconds"]) == first, "the time is over already"
        second = row.train(first["seconds"] + 1e-9)
        assert second["steps"] == 2
        assert second["tokens"] > first["tokens"]
        assert second["seconds"] > first["seconds"]
        assert row.held_out_loss(held_out) != losses[-1], "it is of the weights as they are now"
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_other_stages_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--json", str(tmp_path / "a.json"), "--stage", "dpo"]
    assert loss_curves.main(argv) == 2
    assert "these are the curves of pretraining" in capsys.readouterr().err


def test_the_rows_files_make_one_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_plots, "ROOT", tmp_path)
    folder = tmp_path / "results" / "nvidia-h200"
    folder.mkdir(parents=True)
    for number, name in enumerate(("engine", "original")):
        points = [{"seconds": 60.0 * n, "loss": 8.0 - n - number, "tokens": n} for n in range(3)]
        row = {"name": name, "model": "tiny", "precision": "bf16", "points": points}
        machine = {"device": "NVIDIA H200", "date": str(number)}
        results = {"benchmark": "loss_curves", "machine": machine, "rows": [row]}
        (folder / f"loss_curves-{name}.json").write_text(json.dumps(results))
    (drawn,) = report_plots.draw_plots(Results.load(folder.parent))
    assert drawn.name == "loss_curves-nvidia-h200.png"
    assert drawn.read_bytes().startswith(b"\x89PNG")

"""Curves of methods: every method's held-out loss is the same figure, over the asked tokens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.learning import __main__ as learning
from bench.learning.curve import CurveRow
from bench.learning.methods import METHODS
from bench.learning.results import learning_section
from bench.learning.specs import build_spec
from bench.report import plots as report_plots
from bench.results import Results
from bench.train.documents import Documents
from minimind.runtime.devices import find_device

SMALL = ["--model", "tiny", "--tokens", "3000", "--document_tokens", "32"]
SMALL += ["--set", "num_hidden_layers=1", "--set", "hidden_size=32"]


def curve_row(folder: Path, name: str, **changes: Any) -> CurveRow:
    options = learning.build_parser().parse_args(["--json", str(folder / "a.json"), *SMALL])
    return CurveRow(build_spec(options, replace(METHODS[name], **changes), 1, find_device()))


def make_held_out() -> Documents:
    random = np.random.default_rng(0)
    ids = [random.integers(3, 500, size=n) for n in random.integers(2, 33, size=21)]
    return Documents(ids=ids, max_tokens=32, pad_id=0, seed=0)


@pytest.mark.usefixtures("fp32")
def test_padded_and_packed_methods_have_one_held_out_loss(tmp_path: Path) -> None:
    losses, held_out = [], make_held_out()
    for row in (
        curve_row(tmp_path, "original", rows=4),
        curve_row(tmp_path, "default", rows=2, seq_len=64),
    ):
        assert row.build()["precision"] == "fp32"
        losses.append(row.held_out_loss(held_out))
        first = row.train(1)
        assert row.train(1) == first, "the step is taken already"
        second = row.train(2)
        assert second["steps"] == 2
        assert second["tokens"] > first["tokens"]
        assert second["seconds"] > first["seconds"]
        assert row.held_out_loss(held_out) != losses[-1], "it is of the weights as they are now"
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_each_method_reads_about_the_asked_tokens(tmp_path: Path) -> None:
    for name, changes in (("original-8", {}), ("default", {"rows": 2, "seq_len": 64})):
        row = curve_row(tmp_path, name, **changes)
        row.build()
        done = row.train(row._spec.steps)
        assert done["tokens"] == pytest.approx(3000, rel=0.1), name


def test_every_method_resolves(tmp_path: Path) -> None:
    for name in METHODS:
        curve_row(tmp_path, name)


def test_unknown_methods_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert learning.main(["--json", str(tmp_path / "a.json"), "--methods", "magic"]) == 2
    assert "--methods magic: there are original" in capsys.readouterr().err


def measured(name: str, seed: int, last: float) -> dict[str, Any]:
    points = [
        {"seconds": 10.0 * n, "steps": n, "tokens": 100 * n, "loss": 8 - (8 - last) * n / 4}
        for n in range(5)
    ]
    return {"name": name, "what": name, "seed": seed, "learning_rate": 1e-3, "points": points}


def test_results_become_a_table_and_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_plots, "ROOT", tmp_path)
    folder = tmp_path / "results" / "cpu"
    folder.mkdir(parents=True)
    rows = [measured("original", seed, 6.0 + seed) for seed in (0, 1)]
    rows += [measured("default", seed, 5.0) for seed in (0, 1)]
    machine = {"device": "CPU", "cores": 2, "date": "1", "commit": "abc", "kind": "cpu"}
    arguments = {"model": "tiny", "set": [], "tokens": 400}
    results = {"benchmark": "learning", "machine": machine, "arguments": arguments, "rows": rows}
    (folder / "learning.json").write_text(json.dumps(results))
    loaded = Results.load(folder.parent)
    table = learning_section(loaded)
    assert "6.500 ± 0.707" in table
    # Halfway from 8 to 5 is the original's mean last loss, 6.5.
    assert "20 s" in table
    assert "40 s" in table
    (drawn,) = report_plots.draw_plots(loaded)
    assert drawn.name == "learning-cpu.png"
    assert drawn.read_bytes().startswith(b"\x89PNG")

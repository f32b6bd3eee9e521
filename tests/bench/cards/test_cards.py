"""bench.cards: what README says that each model needs on cards that people have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cpu_decoding import needs_compiler

from bench.cards.__main__ import CARDS, COUNTS, FILE, MODELS, least_seconds, main, rehearse_cards

COMMITTED: list[dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))["rows"]


def key(row: dict[str, Any]) -> tuple[str, str, int]:
    return row["model"], row["name"], row["world_size"]


def test_the_committed_file_has_every_model_on_every_card() -> None:
    assert {key(row) for row in COMMITTED} == {
        (model, card, count) for model in MODELS for card in CARDS for count in COUNTS
    }
    for row in COMMITTED:
        assert 0 < row["peak_bytes"] < 23.5 * 2**30, "fits on a card of 24 GB"
        assert row["bound"] in ("products", "memory", "links", "host")


@pytest.mark.slow
@needs_compiler
def test_rehearsals_give_the_committed_figures() -> None:
    committed = {key(row): row for row in COMMITTED}
    for row in rehearse_cards(MODELS, CARDS, COUNTS):
        for name in ("tokens_per_step", "least_step_s", "peak_bytes"):
            said = f"{key(row)}, {name}: python -m bench.cards, then python -m bench.report"
            assert row[name] == pytest.approx(committed[key(row)][name], rel=0.05), said


def test_the_time_follows_from_steps() -> None:
    assert least_seconds({"tokens_per_step": 1000, "least_step_s": 3.0}, 1e6) == 3000


@pytest.mark.parametrize(
    "flags",
    [
        ["--cards", "RTX 9999"],
        ["--models", "minimind9"],
        ["--num_gpus", "none"],
        ["--num_gpus", "0"],
    ],
)
def test_bad_options_are_named(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--json", str(tmp_path / "cards.json"), *flags]) == 2
    assert flags[1] in capsys.readouterr().err
    assert not (tmp_path / "cards.json").exists()

"""The shipped recipes: each is resolved and rehearsed for the machine that it is sized for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cpu_decoding import needs_compiler

from minimind.config.model import PRESETS
from minimind.config.shipped import list_shipped
from minimind.pipeline import plan
from minimind.pipeline.plan import PlannedStep, plan_pipeline
from minimind.pipeline.recipe_file import RECIPES, load_pipeline
from minimind.pipeline.step import Place
from minimind.rehearsal.fits import read_place

NAMES = list_shipped(RECIPES)


@pytest.fixture
def originals(tmp_path: Path) -> Path:
    """A folder with small files of the names and forms of the original's data."""
    chat = [{"role": "user", "content": "你好吗？"}, {"role": "assistant", "content": "我很好。"}]
    other = [chat[0], {"role": "assistant", "content": "不好。"}]
    row_of = {
        "pretrain_hq.jsonl": {"text": "数到一百。" * 20},
        "sft_mini_512.jsonl": {"conversations": chat},
        "sft_512.jsonl": {"conversations": chat},
        "lora_identity.jsonl": {"conversations": chat},
        "dpo.jsonl": {"chosen": chat, "rejected": other},
    }
    for name, row in row_of.items():
        line = json.dumps(row, ensure_ascii=False) + "\n"
        (tmp_path / name).write_text(line * 50, encoding="utf-8")
    return tmp_path


def test_every_preset_has_a_recipe_for_one_card_and_for_eight():
    sizes = {
        f"{name}-{size}.json" for name in PRESETS if name != "tiny" for size in ("24gb", "8gpu")
    }
    assert set(NAMES) == sizes | {"tiny.json"}


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_resolves(
    name: str, originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(plan, "why_not", lambda run: "the next test does")
    planned = plan_for(name, originals, tmp_path)
    assert planned[-1].step.verb == "convert"
    assert all(one.checked.num_steps for one in planned if one.checked.run)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_fits_the_machine_it_is_sized_for(
    name: str, originals: Path, tmp_path: Path
):
    """Half a minute each."""
    trained = [one.checked for one in plan_for(name, originals, tmp_path) if one.checked.run]
    assert trained
    assert all(checked.rehearsal for checked in trained)


def plan_for(name: str, data_dir: Path, folder: Path) -> list[PlannedStep]:
    pipeline = load_pipeline(name, str(data_dir))
    machine = read_place(pipeline.sized_for or "cpu")
    return plan_pipeline(pipeline, Place(*machine, folder / "made", is_here=False))

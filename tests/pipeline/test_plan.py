"""What is checked before anything starts, and what the table says of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cpu_decoding import needs_compiler
from empty_rehearsal import NOTHING
from small_recipes import SMALL, STEPS

from minimind.config.model import load_model_config
from minimind.data.text_format import TEXT
from minimind.data.tokenizer import Tokenizer
from minimind.errors import MiniMindError
from minimind.lora.folder import load_model_folder
from minimind.model.transformer import Transformer
from minimind.pipeline import plan
from minimind.pipeline.data_heads import estimate_steps, read_head
from minimind.pipeline.plan import describe_plan, plan_pipeline, spell_seconds
from minimind.pipeline.stand_ins import write_model, write_tokenizer
from minimind.pipeline.step import Place
from minimind.rehearsal import fits
from minimind.rehearsal.fits import read_place
from minimind.rehearsal.rehearse import Point
from minimind.rehearsal.report import Rehearsal
from minimind.run.run import Run

TEXT_STEP: dict[str, Any] = {**SMALL, "name": "text", "data": "texts.jsonl"}
CHAT_STEP: dict[str, Any] = {**SMALL, "stage": "sft", "data": "chats.jsonl"}
ASK: dict[str, Any] = {"verb": "evaluate", "prompts": ["a"]}


@pytest.mark.usefixtures("unrehearsed")
@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([TEXT_STEP | {"data": "txts.jsonl"}], "no such file"),
        ([TEXT_STEP | {"epoch": 2}], "step 1 (text): epoch: neither a field"),
        ([TEXT_STEP | {"epoch": 2}], "(did you mean epochs?)"),
        ([TEXT_STEP | {"max_steps": "many"}], "max_steps is 'many'; it must be a valid integer"),
        ([TEXT_STEP | {"stage": "sftt"}], "'sftt' is no stage (did you mean sft?)"),
        ([TEXT_STEP | {"model": "minimind4"}], "neither a preset"),
        ([TEXT_STEP | {"batch_size": 6, "set": {"micro_batch_size": 4}}], "is not whole"),
        ([TEXT_STEP | {"data": "chats.jsonl"}], "chats.jsonl"),
        ([TEXT_STEP, CHAT_STEP | {"data": "texts.jsonl"}], "step 2 (sft): "),
        ([TEXT_STEP, CHAT_STEP | {"model": "tiny"}], "the coming result of step text"),
        ([TEXT_STEP | {"set": {"warmup_steps": 9}}], "warmup_steps is 9, and the run has 2 steps"),
        ([TEXT_STEP, ASK | {"prompts": [" "]}], "step 2 (evaluate): prompts holds ' '"),
        ([TEXT_STEP, ASK | {"prompts": []}], "nothing to evaluate"),
        ([TEXT_STEP, ASK | {"choices": "nowhere.csv"}], "nowhere.csv"),
        ([TEXT_STEP, {"verb": "convert", "to": "gguff"}], "(did you mean gguf?)"),
        ([TEXT_STEP, {"verb": "convert", "to": "hf", "quantize": "q8_0"}], "is an option of"),
        ([TEXT_STEP, {"verb": "convert", "to": "peft"}], "'text' trains a whole model"),
        ([{"verb": "tokenizer", "data": "texts.jsonl", "vocab_size": 200}], "at least 292"),
        (
            [
                {"verb": "tokenizer", "data": "texts.jsonl", "vocab_size": 7000},
                TEXT_STEP | {"model": "minimind2-small"},
            ],
            "step 2 (text): ",
        ),
    ],
)
def test_what_could_not_work_is_refused_with_its_step(load, place, steps, said: str):
    with pytest.raises(MiniMindError) as refused:
        plan_pipeline(load(steps), place)
    assert said in str(refused.value)
    assert "small.json: step " in str(refused.value)
    assert "/tmp/minimind-pipeline" not in str(refused.value)


@pytest.mark.usefixtures("unrehearsed")
def test_a_bad_row_at_the_beginning_of_the_data_is_named_with_its_line(load, place, tmp_path: Path):
    pipeline = load([TEXT_STEP])
    data = tmp_path / "data" / "texts.jsonl"
    lines = data.read_text(encoding="utf-8").splitlines()
    lines[6] = '{"text": 7}'
    data.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(MiniMindError, match=r"texts\.jsonl:7: .*\n?.*1 bad row"):
        plan_pipeline(pipeline, place)
    (planned,) = plan_pipeline(load([TEXT_STEP | {"on_bad_row": "skip"}]), place)
    assert planned.state == "to make"


@needs_compiler
def test_the_table_shows_each_step_on_a_machine_that_is_not_there(load, tmp_path: Path):
    """By the rehearsals of two small steps on eight GPUs."""
    steps = [step | {"batch_size": 16} for step in (TEXT_STEP, CHAT_STEP)]
    steps[0] |= {"set": {"hidden_size": 64, "num_hidden_layers": 1}}
    pipeline = load([*steps, STEPS[3]], sized_for="h200:8")
    place = Place(*read_place("h200:8"), tmp_path / "made", is_here=False)
    planned = plan_pipeline(pipeline, place)
    said = describe_plan(pipeline, place, planned)
    assert "H200 x 8 (the recipe is sized for h200:8)" in said
    text, chat, answers = [
        line for line in said.splitlines() if line.startswith(("| text", "| sft", "| answers"))
    ]
    assert "16 x 64 tokens = 2 x 1 x 8" in text
    assert "of 139.8 GiB" in chat
    assert chat.count("at least") == 1
    assert "no estimate" not in answers
    assert all(one.checked.rehearsal.peak_bytes > 0 for one in planned[:2])
    assert planned[0].checked.least_seconds > 0


def test_a_step_that_does_not_fit_the_memory_is_refused(
    load, place, monkeypatch: pytest.MonkeyPatch
):
    """Each of its four rows takes 10 GiB, of 25 that are there."""

    def rehearse(points: Sequence[Point]) -> list[Rehearsal]:
        rows = [point.arguments.recipe.get("micro_batch_size", 4) for point in points]
        assert not any("data" in point.arguments.run for point in points), "too long to tokenise"
        return [dataclasses.replace(NOTHING, peak={"rows": n * 10 * 2**30}) for n in rows]

    for module in (plan, fits):
        monkeypatch.setattr(module, "rehearse_all", rehearse)
    small = dataclasses.replace(place.device, memory_bytes=25 * 2**30)
    with pytest.raises(MiniMindError) as refused:
        plan_pipeline(
            load([TEXT_STEP | {"batch_size": 4}]), dataclasses.replace(place, device=small)
        )
    said = "step 1 (text): memory 40.00 GiB, more than the 25.00 GiB of "
    assert said in str(refused.value)
    assert "a micro-batch of 2 rows fits: --set micro_batch_size=2" in str(refused.value)


def test_a_stand_in_is_a_model_of_zeros_that_takes_no_room(tmp_path: Path, tokenizer: Tokenizer):
    config = load_model_config("minimind3-moe")
    write_model(tmp_path / "model", config, tokenizer)
    file = tmp_path / "model" / "model.safetensors"
    assert file.stat().st_size > 4 * config.num_parameters
    assert file.stat().st_blocks * 512 < 1 << 20
    small = load_model_config("tiny", {"num_experts": 3}, tokenizer_vocab=tokenizer.vocab_size)
    write_model(tmp_path / "small", small, tokenizer)
    found, weights = load_model_folder(tmp_path / "small")
    assert found == small
    assert weights.keys() == dict(Transformer(small).named_parameters()).keys()
    assert not any(weight.any() for weight in weights.values())


def test_a_stand_in_of_a_tokenizer_has_the_size_asked_for(tmp_path: Path):
    write_tokenizer(tmp_path, ["ab ab abc abc"], 400)
    found = Tokenizer.load(tmp_path)
    assert found.vocab_size == 400
    assert found.decode(found.encode("ab 好")) == "ab 好"


def test_the_amount_of_data_is_estimated_from_its_beginning(tmp_path: Path, tokenizer: Tokenizer):
    path = tmp_path / "a.jsonl"
    rows = [json.dumps({"text": f"number {n} " * 40}) + "\n" for n in range(8000)]
    path.write_text("".join(rows[:100]))
    few = read_head(str(path), tokenizer, TEXT, row_len=64)
    assert few.is_exact
    assert few.units == 100
    path.write_text("".join(rows))
    many = read_head(str(path), tokenizer, TEXT, row_len=64)
    assert not many.is_exact
    assert many.units == pytest.approx(8000, rel=0.05)


@pytest.mark.parametrize("data", [["sample:text"], ["sample:text:0.3", "sample:chat:0.7"]])
def test_estimated_steps_are_about_those_of_the_run(data: list[str]):
    stage = "sft" if len(data) > 1 else "pretrain"
    data = ["sample:sentences:0.3", "sample:chat:0.7"] if stage == "sft" else data
    run = Run.resolve(stage=stage, from_checkpoint="none", data=data)
    estimated, is_exact = estimate_steps(run.resolved, run.tokenizer)
    assert not is_exact
    assert estimated == pytest.approx(run.total_steps, rel=0.1)


def test_durations_are_written_in_two_units():
    assert [spell_seconds(s) for s in (0.4, 59, 61, 3599, 3600, 90061)] == [
        "0 s", "59 s", "1 min 01 s", "59 min 59 s", "1 h 00 min", "25 h 01 min"
    ]  # fmt: skip

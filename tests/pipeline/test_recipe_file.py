"""What a recipe may say, which step takes what, and how a wrong one is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from minimind.errors import ConfigError
from minimind.pipeline.recipe_file import load_pipeline

CHAT: dict[str, Any] = {"name": "chat", "stage": "sft"}
TEXT: dict[str, Any] = {"name": "text"}
TOKENIZER: dict[str, Any] = {"verb": "tokenizer", "data": "texts.jsonl"}


def test_a_step_takes_the_last_result_that_it_can(load):
    ask = {"verb": "evaluate", "prompts": ["a"]}
    convert = {"verb": "convert", "to": "hf"}
    steps = [TOKENIZER, TEXT, CHAT, {"stage": "dpo"}, {"stage": "grpo", "from": "chat"}]
    pipeline = load([*steps, ask, convert, {"name": "fresh", "from": "tokenizer"}])
    sources = {step.name: step.sources for step in pipeline.steps}
    assert sources == {
        "tokenizer": (),
        "text": ("tokenizer",),
        "chat": ("text",),
        "dpo": ("chat",),
        "grpo": ("chat",),
        "evaluate": ("text", "chat", "dpo", "grpo"),
        "convert": ("grpo",),
        "fresh": ("tokenizer",),
    }


def test_weights_from_outside_take_the_place_of_an_earlier_step(load):
    outside = CHAT | {"from_checkpoint": "runs/other"}
    fresh = {"name": "fresh", "stage": "sft", "from_checkpoint": "none"}
    steps = load([TEXT, outside, fresh]).steps
    assert [step.sources for step in steps] == [(), (), ()]


def test_a_value_may_stand_for_an_earlier_steps_folder(load):
    distill = {"stage": "distill", "from": "text", "set": {"teacher": "step:chat"}}
    assert load([TEXT, CHAT, distill]).steps[-1].sources == ("text", "chat")


def test_relative_paths_of_data_begin_in_the_folder_of_the_data(load, write, tmp_path: Path):
    step = {"data": ["texts.jsonl:0.5", "sample:text:0.5", "/a/b.jsonl"]}
    (own,) = load([step]).steps
    folder = tmp_path / "data"
    assert own.options["data"] == [f"{folder}/texts.jsonl:0.5", "sample:text:0.5", "/a/b.jsonl"]
    (other,) = load_pipeline(str(write([step])), "elsewhere").steps
    assert other.options["data"][0] == "elsewhere/texts.jsonl:0.5"


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([], '"steps", a list of at least one step'),
        ([{"verb": "trian"}], "step 1: verb is 'trian' (did you mean train?)"),
        ([TEXT, TEXT], "step 2 (text): an earlier step has this name"),
        ([{"name": "a/b"}], "step 1: name is 'a/b'; it must be of letters"),
        ([{"name": "report"}], "not 'report'"),
        ([{"name": 5}], "step 1: name is 5; it must be a valid string"),
        ([TEXT | {"output_dir": "x"}], "step 1 (text): output_dir is given by the pipeline"),
        ([CHAT], "step 1 (chat): stage sft starts from trained weights, and no earlier step"),
        ([TEXT, CHAT | {"from": "txt"}], "from names 'txt', which is no earlier step that it can"),
        ([TEXT, CHAT | {"from": "txt"}], "(did you mean text?)"),
        ([CHAT | {"from": "text"}, TEXT], "there are none"),
        ([TEXT, CHAT | {"from": "text", "from_checkpoint": "x"}], "contradict"),
        ([TEXT, CHAT | {"teacher": "step:large"}], "step: names 'large'"),
        ([TOKENIZER | {"vocab": 3}], "unknown field vocab (did you mean vocab_size?)"),
        ([TOKENIZER | {"vocab_size": "many"}], "vocab_size is 'many'; it must be a valid integer"),
        ([TOKENIZER | {"from": "x"}], "a tokenizer is trained on data alone"),
        ([{"verb": "tokenizer"}], "step 1 (tokenizer): needs the field data"),
        ([{"verb": "evaluate", "prompts": ["a"]}], "no earlier step trains a model to evaluate"),
        ([TEXT, {"verb": "convert"}], "step 2 (convert): needs the field to"),
        ([{"verb": "convert", "to": "hf"}], "no earlier step trains a model to convert"),
        ([TEXT, {"verb": "convert", "to": "hf", "input": "x"}], "input is given by the pipeline"),
    ],
)
def test_a_wrong_step_is_named_with_its_place(load, steps: list[dict[str, Any]], said: str):
    with pytest.raises(ConfigError) as refused:
        load(steps)
    assert said in str(refused.value)
    assert str(refused.value).split(": ")[0].endswith("small.json")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"stps": []}, "unknown key stps (did you mean steps?)"),
        ({"launcher": "slurm"}, "launcher is 'slurm'; it must be one of python, torchrun"),
        ({"ranks": 0}, "ranks is 0; it must be at least 1"),
        ({"ranks": "two"}, "ranks is 'two'; it must be a valid integer"),
        ({"description": 1}, "description is 1; it must be a valid string"),
    ],
)
def test_a_wrong_key_of_the_file_is_named(load, keys: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=r"small\.json") as refused:
        load([TEXT], **keys)
    assert said in str(refused.value)


def test_a_key_twice_and_no_json_are_refused(tmp_path: Path):
    path = tmp_path / "a.json"
    for text, said in (('{"steps": [], "steps": []}', '"steps" stands twice'), ("{", "not valid")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=said):
            load_pipeline(str(path))


def test_a_shipped_recipe_is_found_by_its_name():
    assert load_pipeline("tiny").name == load_pipeline("tiny.json").name == "tiny"
    with pytest.raises(ConfigError, match=r"recipe tny: no such file \(did you mean tiny.json\?\)"):
        load_pipeline("tny")

"""minimind answer: chat data in, the same with a model's own answers out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_models import random_model, small_config

from minimind.cli.main import run_verb
from minimind.data.chat_format import chat_samples
from minimind.inference.load import load_model
from minimind.inference.prompts import answer_prompts
from minimind.inference.sampling import SamplingParams
from minimind.model.state_dict import save_hf_folder
from minimind.samples.text import load_sample_tokenizer
from minimind.types import Row, Sample

Main = Callable[..., int]
QUESTIONS = ["q", "What is 6 plus 9?", "塔恩的房子是什么颜色？", "a b c", "x"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that ends its answers sooner or later: the end of a turn is likely anywhere."""
    folder, tokenizer = tmp_path_factory.mktemp("teacher"), load_sample_tokenizer()
    model = random_model(small_config(vocab_size=tokenizer.vocab_size))
    with torch.no_grad():
        model.embed_tokens.weight[tokenizer.eos_id] *= 4
    save_hf_folder(folder, model.config, dict(model.named_parameters()), torch.float32)
    tokenizer.save(folder)
    return folder


@pytest.fixture
def answer(teacher: Path, tmp_path: Path) -> Main:
    def run(rows: list[object], *more: str) -> int:
        data = tmp_path / "questions.jsonl"
        data.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
        flags = ["--checkpoint", str(teacher), "--data", str(data)]
        return run_verb("answer", [*flags, "--output", str(tmp_path / "answers.jsonl"), *more])

    return run


def read_turns(tmp_path: Path) -> list[list[dict[str, str]]]:
    lines = (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["conversations"] for line in lines]


def conversation(question: str, *more: dict[str, str]) -> dict[str, list[dict[str, str]]]:
    return {"conversations": [{"role": "user", "content": question}, *more]}


def test_a_model_of_text_is_named(
    answer: Main, teacher: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    shutil.copytree(teacher, tmp_path / "text" / "model")
    (tmp_path / "text" / "meta.json").write_text('{"is_chat": false}')
    assert answer([conversation("q")]) == 0
    assert "never to chat" not in capfd.readouterr().err
    assert answer([conversation("q")], "--checkpoint", str(tmp_path / "text" / "model")) == 0
    assert f"{tmp_path}/text/model was trained on text and never to chat" in capfd.readouterr().err


def test_answers_are_the_models_and_train_another(answer: Main, teacher: Path, tmp_path: Path):
    model, tokenizer = load_model(teacher)
    params = SamplingParams(max_new_tokens=60)
    expected = answer_prompts(model, tokenizer, QUESTIONS, params, is_chat=True)
    given = {"role": "assistant", "content": "to be answered anew"}
    rows = [conversation(q, *([given] if i % 2 else [])) for i, q in enumerate(QUESTIONS)]
    assert answer(rows, "--max_new_tokens", "60", "--dtype", "fp32") == 0
    found = {turns[0]["content"]: turns[1]["content"] for turns in read_turns(tmp_path)}
    assert found
    for question, text in zip(QUESTIONS, expected, strict=True):
        assert found.get(question, text) == text
    rows_out = [Row(data={"conversations": t}, path="a", line=1) for t in read_turns(tmp_path)]
    assert all(isinstance(sample, Sample) for sample in chat_samples(rows_out, tokenizer))


def test_what_is_unfinished_is_left_out_and_counted(
    answer: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    sampled = ("--temperature", "1", "--max_new_tokens")
    rows = [conversation(q) for q in QUESTIONS * 4]
    assert answer(rows, *sampled, "40") == 0
    first = read_turns(tmp_path)
    assert f"{len(first)} answered, {len(rows) - len(first)} left out" in capsys.readouterr().out
    assert answer(rows, *sampled, "40") == 0
    assert read_turns(tmp_path) == first
    assert answer(rows, *sampled, "40", "--seed", "1") == 0
    assert read_turns(tmp_path) != first
    assert answer(rows, *sampled, "0") == 2
    assert "nothing was written" in capsys.readouterr().err
    assert answer(rows, "--max_rows", "-1") == 2
    assert "--max_rows -1: give 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([conversation("q"), {"text": "a"}], 'questions.jsonl:2: no key "conversations"'),
        ([{"conversations": [{"role": "assistant", "content": "a"}]}], "jsonl:1: no user's turn"),
        ([conversation("long " * 40_000)], "jsonl:1: a prompt of"),
    ],
)
def test_a_row_that_cannot_be_answered_is_named(
    answer: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[object],
    message: str,
):  # fmt: skip
    assert answer(rows) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*answers*"))
    assert not list(tmp_path.glob(".answers*"))

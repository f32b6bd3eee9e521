"""minimind evaluate as a user runs it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from evaluation_data import CEVAL
from small_models import random_model, small_config

from minimind.cli.main import run_verb
from minimind.model.state_dict import save_hf_folder
from minimind.samples.text import load_sample_tokenizer


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    tokenizer = load_sample_tokenizer()
    folders = []
    for seed in range(2):
        folder = tmp_path_factory.mktemp(f"model-{seed}")
        model = random_model(small_config(vocab_size=tokenizer.vocab_size), seed)
        save_hf_folder(folder, model.config, dict(model.named_parameters()), torch.float32)
        tokenizer.save(folder)
        folders.append(str(folder))
    return folders


def main(arguments: list[str]) -> int:
    return run_verb("evaluate", arguments)


def test_everything_at_once(
    checkpoints: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "6 + 9 = 15"}\n', encoding="utf-8")
    questions = tmp_path / "facts.csv"
    questions.write_text(CEVAL, encoding="utf-8")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("1 + 1 =\n\n你好\n", encoding="utf-8")
    status = main(
        [
            *("--checkpoint", *checkpoints, "--data", str(data), "--choices", str(questions)),
            *("--prompts", "Anya lives in", f"@{prompts}", "--max_new_tokens", "4"),
            *("--json", str(tmp_path / "found" / "a.json")),
        ]
    )
    assert status == 0
    found = json.loads((tmp_path / "found" / "a.json").read_text(encoding="utf-8"))
    assert list(found) == checkpoints
    for result in found.values():
        assert result["perplexity"][0]["num_documents"] == 1
        assert result["choices"]["all"]["num_questions"] == 2
        assert [row["prompt"] for row in result["answers"]] == ["Anya lives in", "1 + 1 =", "你好"]
    printed = capsys.readouterr().out
    assert printed.count("> 你好") == 1
    for folder in checkpoints:
        # a perplexity, the choices of all and of one subject, three answers
        assert printed.count(folder) == 1 + 2 + 3


def test_chat_prompts_are_turns(checkpoints: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--checkpoint", checkpoints[0], "--prompts", "6 + 9 =", "--max_new_tokens", "8"]
    assert main(arguments) == 0
    as_text = capsys.readouterr().out
    assert main([*arguments, "--chat"]) == 0
    assert capsys.readouterr().out != as_text


def test_a_model_of_text_that_is_asked_is_named(
    checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text"
    shutil.copytree(checkpoints[0], text / "model")
    (text / "meta.json").write_text('{"is_chat": false}')
    both = ["--checkpoint", str(text / "model"), checkpoints[1], "--max_new_tokens", "2"]
    assert main([*both, "--prompts", "6 + 9 ="]) == 0
    assert "never to chat" not in capsys.readouterr().out
    path = tmp_path / "found.json"
    assert main([*both, "--prompts", "6 + 9 =", "--chat", "--json", str(path)]) == 0
    assert capsys.readouterr().out.count(f"note: {text / 'model'} was trained on text and") == 1
    found = json.loads(path.read_text(encoding="utf-8"))
    assert ["notice" in result for result in found.values()] == [True, False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to evaluate"),
        (["--prompts", "@no-such-file"], "no-such-file: cannot be read"),
        (["--prompts", " "], "holds no text"),
        (["--data", "no.jsonl"], "no.jsonl"),
        (["--choices", "no.csv"], "no.csv: cannot be read"),
    ],
)
def test_bad_usage_is_said(
    checkpoints: list[str],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert main(["--checkpoint", checkpoints[0], *arguments]) == 2
    assert message in capsys.readouterr().err


def test_results_are_shown_where_their_file_cannot_be_written(
    checkpoints: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "results.json"
    arguments = ["--checkpoint", checkpoints[0], "--prompts", "6 + 9 =", "--max_new_tokens", "2"]
    assert main([*arguments, "--json", str(path)]) == 2
    said = capsys.readouterr()
    assert "> 6 + 9 =" in said.out
    assert "cannot be written" in said.err


def test_the_harness_is_an_extra(
    checkpoints: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["--checkpoint", checkpoints[0], "--tasks", "hellaswag"]) == 2
    assert "pip install 'minimind[eval]'" in capsys.readouterr().err


def test_a_folder_without_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--checkpoint", str(tmp_path), "--prompts", "x"]) == 2
    assert "no config.json" in capsys.readouterr().err

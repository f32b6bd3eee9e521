"""One rule says on which device and in which dtype a checkpoint is loaded."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import torch
from small_folders import small_folder

from minimind.cli import answer, chat, evaluate, serve
from minimind.errors import ConfigError
from minimind.inference import load
from minimind.inference.load import choose_placement
from minimind.llm import LLM

DTYPE = {"fp32": torch.float32, "bf16": torch.bfloat16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(small_folder(tmp_path_factory.mktemp("models") / "small"))


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The dtypes in which models were loaded since."""
    found: list[torch.dtype] = []
    load_model = load.load_model

    def note(folder: Path, *, dtype: torch.dtype, device: torch.device):
        found.append(dtype)
        return load_model(folder, dtype=dtype, device=device)

    monkeypatch.setattr(load, "load_model", note)
    return found


def test_every_verb_loads_in_the_dtype_that_the_device_trains_in(
    folder: str, loaded: list[torch.dtype], precision: str, tmp_path: Path
) -> None:
    source = ["--checkpoint", folder]
    (served,) = serve.read_sources(serve._build_parser().parse_args(source)).values()
    chat.open_backend(chat._build_parser().parse_args(source))
    assert evaluate.main([*source, "--prompts", "x", "--max_new_tokens", "1"]) == 0
    questions = tmp_path / "questions.jsonl"
    turns = [{"role": "user", "content": "hello"}]
    questions.write_text(json.dumps({"conversations": turns}) + "\n", "utf-8")
    output = ["--output", str(tmp_path / "out.jsonl"), "--max_new_tokens", "9"]
    with contextlib.suppress(ConfigError):  # for answers that do not end within 9 tokens
        answer.main([*source, "--data", str(questions), *output])
    LLM(folder)
    assert [served.placement.dtype, *loaded] == [DTYPE[precision]] * 5


def test_what_is_asked_for_is_taken(folder: str, loaded: list[torch.dtype], precision: str) -> None:
    asked = ["--checkpoint", folder, "--dtype", "fp32"]
    chat.open_backend(chat._build_parser().parse_args(asked))
    assert evaluate.main([*asked, "--prompts", "x", "--max_new_tokens", "1"]) == 0
    LLM(folder, dtype="fp32", device="cpu")
    assert loaded == [torch.float32] * 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dtype": "fp8"}, "dtype 'fp8' is not known; use auto, fp32, bf16, fp16"),
        ({"device": "abacus"}, "device 'abacus' is not known"),
        ({"device": "meta"}, "models run on 'cpu' and 'cuda'"),
    ],
)
def test_what_is_not_there_is_said(given: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_placement(**given)

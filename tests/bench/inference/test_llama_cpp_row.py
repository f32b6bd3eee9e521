"""The row of llama.cpp in bench.inference: the tokens of our engine, or a refusal."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from bench.inference import __main__ as inference
from bench.inference import llama_cpp_row
from bench.inference.rows import InferenceSpec, ServedRow
from minimind.config.model import ModelConfig
from minimind.errors import ConfigError

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 1700,
}
CPU = torch.device("cpu")


def test_it_is_refused_where_it_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    model, results = tmp_path / "model.json", tmp_path / "results.json"
    model.write_text(json.dumps(SIZES))
    flags = ["--model", str(model), "--rows", "minimind,llama.cpp", "--clients", "none"]
    assert inference.main(["--json", str(results), *flags, "--batch", "1"]) == 2
    assert "pip install llama-cpp-python" in capsys.readouterr().err


def test_it_is_refused_beside_rows_on_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="it runs on a CPU, the other rows on cuda"):
        llama_cpp_row.prepare(tmp_path, torch.bfloat16, torch.device("cuda"))


def test_it_generates_the_tokens_of_our_engine(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
    inference._save_random_model(tmp_path, ModelConfig(**SIZES), seed=0)
    llama_cpp_row.prepare(tmp_path, torch.float32, CPU)
    prompts = [[5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16]]
    ids = []
    for name in ("minimind", llama_cpp_row.NAME):
        sizes = {"batch": 3, "prompt_tokens": 4, "new_tokens": 6}
        row = ServedRow(
            InferenceSpec(name=name, folder=tmp_path, dtype=torch.float32, device=CPU, **sizes)
        )
        row.build()
        row.start_timing()
        found = row.generate(prompts)
        assert found.first_token_s > 0
        ids.append(found.ids)
        row.measure(prompts)
    assert ids[0] == ids[1]

"""bench.inference: both rows generate the same from the same folder, and a run reports it all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench.inference import __main__ as inference
from bench.inference.rows import GenerationTime, InferenceSpec, ServedRow
from minimind.config.model import ModelConfig
from minimind.samples.text import load_sample_tokenizer

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1700,
}


def spec(name: str, folder: Path, **sizes: int) -> InferenceSpec:
    """Describes a row of the model in `folder`, in fp32 on a CPU."""
    cpu = torch.device("cpu")
    return InferenceSpec(name=name, folder=folder, dtype=torch.float32, device=cpu, **sizes)


def test_both_rows_generate_the_same(tmp_path: Path):
    inference._save_random_model(tmp_path, ModelConfig(**SIZES), seed=0)
    prompts = [[5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16]]
    ids = []
    for kind in ("minimind", "transformers"):
        row = ServedRow(spec(kind, tmp_path, batch=3, prompt_tokens=4, new_tokens=6))
        row.build()
        row.start_timing()
        found = row.generate(prompts)
        assert found.first_token_s > 0
        assert found.decode_tokens_per_s > 0
        ids.append(found.ids)
        assert row.measure(prompts)["peak_bytes"] > 4 * 1700 * 32
    assert ids[0] == ids[1]


def test_a_run_reports_its_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model, results = tmp_path / "model.json", tmp_path / "results.json"
    model.write_text(json.dumps(SIZES))
    sizes = ["--batch", "2", "--prompt", "4", "--new", "5", "--rounds", "2"]
    sizes += ["--clients", "1,3"]
    argv = ["--json", str(results), "--model", str(model), "--rows", "minimind", *sizes]
    assert inference.main([*argv, "--precision", "fp32"]) == 0
    content = json.loads(results.read_text())
    row, *served = content["rows"]
    assert [one["clients"] for one in served] == [1, 3]
    for one in served:
        assert one["useful_tokens_per_s"] > 0
        assert 0 < one["first_token_s"]["median"] <= one["latency_s"]["median"]
        assert one["peak_resident_bytes"] > 1e7
        assert one["peak_bytes"] is None, "not measured: nobody asks the server for it"
    assert (content["benchmark"], row["name"], row["batch"]) == ("inference", "minimind", 2)
    assert row["useful_tokens_per_s"] > 0
    assert row["peak_bytes"] > 0
    assert row["ratio_to_transformers"] is None
    assert row["machine"]["device"]
    assert "decode tokens/s" in capsys.readouterr().out


def test_a_held_row_generates_json_of_its_schema(tmp_path: Path):
    inference._save_random_model(tmp_path, ModelConfig(**SIZES), seed=0)
    row = ServedRow(spec("held", tmp_path, batch=2, prompt_tokens=2, new_tokens=30))
    row.build()
    ids = row.generate([[5, 6], [9, 10]]).ids
    for text in map(load_sample_tokenizer().decode, ids):
        assert text.startswith('[{"name": "')


def test_ratios_are_of_the_same_turn():
    def times(*rates: float, ids: list[list[int]]) -> list[GenerationTime]:
        return [
            GenerationTime(first_token_s=1, decode_tokens_per_s=rate, ids=ids) for rate in rates
        ]

    ours, theirs = times(20, 60, ids=[[1, 2], [3, 4]]), times(10, 20, ids=[[1, 2], [3, 5]])
    found = inference._compare(ours, theirs)
    assert found["ratio_to_transformers"] == pytest.approx(2.5)
    assert found["same_sequences"] == 0.5


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--rows", "vllm"], "vllm"),
        (["--batch", "1,x"], "1,x"),
        (["--clients", "0"], "--clients 0"),
        (["--new", "2"], "--new 2"),
        (["--model", "huge"], "huge"),
    ],
)
def test_bad_usage_is_named(
    tmp_path: Path, flags: list[str], word: str, capsys: pytest.CaptureFixture[str]
):
    assert inference.main(["--json", str(tmp_path / "r.json"), *flags]) == 2
    assert word in capsys.readouterr().err

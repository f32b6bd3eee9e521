"""GGUF files: what is in them, and that they come back as they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf_models import ARCHITECTURES, MODELS, gguf_file, model_folder

from minimind.cli.main import run_verb
from minimind.data.tokenizer import Tokenizer
from minimind.errors import CheckpointError, ConfigError
from minimind.interop.conversion import convert
from minimind.interop.gguf import architecture
from minimind.interop.gguf.tensors import gguf_tensors
from minimind.interop.options import ConvertOptions
from minimind.interop.readers import open_source
from minimind.interop.rotation import to_halves, to_pairs
from minimind.interop.safetensors_file import write_safetensors
from minimind.samples.text import load_sample_tokenizer


def contents(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


@pytest.fixture(scope="module", params=MODELS)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of each model; its folder lies beside it under the same name."""
    return gguf_file(tmp_path_factory.mktemp("gguf"), request.param)


def test_a_model_comes_back_bit_by_bit(written: Path, tmp_path: Path) -> None:
    source, result = open_source(written.with_suffix("")), open_source(written)
    assert result.config == source.config
    assert set(result.tensors) == set(source.tensors)
    for tensor in source.tensors:
        assert torch.equal(result.tensors[tensor], source.tensors[tensor]), tensor
    assert source.tokenizer is not None
    assert result.tokenizer is not None
    before, after = Tokenizer.load(source.tokenizer), Tokenizer.load(result.tokenizer)
    assert after.fingerprint == before.fingerprint
    assert after.special_tokens == before.special_tokens
    again = tmp_path / "again.gguf"
    convert(written, "gguf", again, ConvertOptions())
    assert again.read_bytes() == written.read_bytes()


@pytest.mark.parametrize("quantize", [None, "q8_0"])
@pytest.mark.faults(
    "a conversion that writes another configuration",
    "the field is named; nothing is left",
)
def test_a_field_that_comes_back_otherwise_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantize: str | None
) -> None:
    """The logits of a quantized file may differ, so they would not tell."""
    right = architecture.to_fields
    wrong = {"qwen3.attention.layer_norm_rms_epsilon": 1e-4}
    monkeypatch.setattr(architecture, "to_fields", lambda config: right(config) | wrong)
    with pytest.raises(CheckpointError, match=r"rms_norm_eps is 0\.0001, and that of .* is 1e-06"):
        gguf_file(tmp_path, "qwen3", quantize)
    assert [path.name for path in tmp_path.iterdir()] == ["qwen3"]


@pytest.mark.parametrize("quantize", [None, "q8_0"])
def test_numbers_of_more_digits_than_a_field_holds_are_rounded(
    tmp_path: Path, quantize: str | None
) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.1386294361119891}
    sizes = {"rope_theta": 1234567.89, "rms_norm_eps": 1.23456789e-6}
    path = gguf_file(tmp_path, "qwen3", quantize, rope_scaling=yarn, **sizes)
    config = open_source(path).config
    assert config.rope_scaling is not None
    assert config.rope_scaling["attention_factor"] == 1.13863
    for name, value in sizes.items():
        assert getattr(config, name) == float(str(np.float32(value))) != value


def test_the_names_and_sizes_are_those_of_the_architecture(written: Path) -> None:
    source, fields = open_source(written.with_suffix("")), contents(written)
    config, arch = source.config, ARCHITECTURES[written.stem]
    assert fields["general.architecture"] == arch == architecture.find_architecture(config)
    for key, value in {
        gguf.Keys.LLM.CONTEXT_LENGTH: 512,
        gguf.Keys.LLM.EMBEDDING_LENGTH: config.hidden_size,
        gguf.Keys.LLM.BLOCK_COUNT: config.num_hidden_layers,
        gguf.Keys.LLM.FEED_FORWARD_LENGTH: config.intermediate_size,
        gguf.Keys.Attention.HEAD_COUNT: config.num_attention_heads,
        gguf.Keys.Attention.HEAD_COUNT_KV: config.num_key_value_heads,
        gguf.Keys.Attention.KEY_LENGTH: config.head_dim,
        gguf.Keys.Attention.VALUE_LENGTH: config.head_dim,
        gguf.Keys.Attention.LAYERNORM_RMS_EPS: pytest.approx(config.rms_norm_eps),
        gguf.Keys.Rope.FREQ_BASE: config.rope_theta,
    }.items():
        assert fields[key.format(arch=arch)] == value, key
    # The library's own table of names, with all experts' matrices under one name.
    known = gguf.get_tensor_name_map(
        next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == arch), config.num_hidden_layers
    )
    for tensor in gguf_tensors(config):
        first = tensor.parts[0].replace("experts.0.", "experts.")
        assert known.get_name(first, (".weight",)) == tensor.name
    names = {t.name for t in gguf.GGUFReader(written).tensors}
    assert names == {tensor.name for tensor in gguf_tensors(config)}
    assert ("output.weight" in names) is not config.tie_word_embeddings


def test_the_tokenizer_is_written_as_llama_cpp_reads_it(qwen3_file: Path) -> None:
    fields = contents(qwen3_file)
    tokenizer = load_sample_tokenizer()
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert fields["tokenizer.ggml.model"] == "gpt2"
    assert fields["tokenizer.ggml.pre"] == "gpt-2"
    assert tokens[:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    kinds = gguf.TokenType
    assert types[:21] == [kinds.CONTROL] * 21
    assert types[21:36] == [kinds.USER_DEFINED] * 15
    assert types[36:-3] == [kinds.NORMAL] * (tokenizer.vocab_size - 36)
    assert types[-3:] == [kinds.UNUSED] * 3
    ids = {name: fields[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "padding")}
    assert ids == {"bos": 1, "eos": 2, "padding": 0}
    assert fields["tokenizer.ggml.add_bos_token"] is True
    assert fields["tokenizer.ggml.add_eos_token"] is False
    assert fields["tokenizer.chat_template"] == tokenizer.chat_template
    spec = json.loads(fields["tokenizer.huggingface.json"])
    assert fields["tokenizer.ggml.merges"] == [" ".join(pair) for pair in spec["model"]["merges"]]


def test_an_interleaved_rotation_pairs_what_the_halves_paired() -> None:
    weight = torch.arange(24.0).reshape(12, 2)  # two heads of six rows
    pairs = to_pairs(weight, head_size=6)
    assert (pairs[:, 0] / 2).tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    assert torch.equal(to_halves(pairs, head_size=6), weight)


@pytest.mark.parametrize(
    ("quantize", "kind", "error"),
    [
        ("f16", "F16", 2**-11),
        ("bf16", "BF16", 2**-8),
        ("q8_0", "Q8_0", 1 / 127),
        ("q4_0", "Q4_0", 1 / 7),
    ],
)
@pytest.mark.parametrize("name", ["qwen3", "shared_experts"])
def test_weights_are_rounded_to_the_type(
    tmp_path: Path, name: str, quantize: str, kind: str, error: float
) -> None:
    path = gguf_file(tmp_path, name, quantize)
    source, result = open_source(tmp_path / name), open_source(path)
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(path).tensors}
    for tensor in gguf_tensors(source.config):
        is_small = "norm" in tensor.name or tensor.name.endswith("ffn_gate_inp.weight")
        for part in tensor.parts:
            before, after = source.tensors[part], result.tensors[part].float()
            if is_small:
                assert kinds[tensor.name] == "F32"
                assert torch.equal(after, before)
            else:
                assert kinds[tensor.name] in (kind, "Q8_0", "F16")
                assert (after - before).abs().max() <= error * before.abs().max()
                assert not torch.equal(after, before)
    assert kinds["blk.1.attn_q.weight"] == kind
    assert kinds["token_embd.weight"] == {"Q4_0": "Q8_0"}.get(kind, kind)
    # Rows of 48 values, 96 of two shared experts: a block has 32.
    down = {"qwen3": "blk.0.ffn_down.weight", "shared_experts": "blk.0.ffn_down.weight"}[name]
    rows = source.tensors.shape("model.layers.0.mlp.down_proj.weight")[1]
    assert kinds[down] == (kind if rows % 32 == 0 or kind == "BF16" else "F16")


def test_without_a_choice_the_type_is_the_sources(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "fp32", "qwen3")
    convert(folder, "hf", tmp_path / "bf16", ConvertOptions(dtype="bf16"))
    for dtype, kind in (("fp32", "F32"), ("bf16", "BF16")):
        path = tmp_path / f"{dtype}.gguf"
        result = convert(tmp_path / dtype, "gguf", path, ConvertOptions())
        assert [d.largest for d in result.differences] == [0, 0]
        matrix = next(t for t in gguf.GGUFReader(path).tensors if t.name == "token_embd.weight")
        assert matrix.tensor_type.name == kind


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("qwen3_experts", {"norm_topk_prob": False}, "not divided by their sum"),
        ("shared_experts", {"num_experts_per_tok": 1}, "not divided by their sum"),
        ("shared_experts", {"mlp_only_layers": (1,)}, r"dense layers \[1\] that are not the first"),
        ("qwen3_experts", {"mlp_only_layers": (0,)}, "dense layers beside experts with QK norm"),
        ("qwen3_experts", {"n_shared_experts": 1}, "shared experts beside QK norm"),
        ("llama_yarn", {"rope_scaling": {"rope_type": "yarn", "beta_fast": 16.0}}, "beta_fast 16"),
        ("llama_yarn", {"rope_theta": 100.0}, "whose ramp ends beyond"),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused(
    tmp_path: Path, name: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        gguf_file(tmp_path, name, **changes)
    assert not list(tmp_path.glob("*.gguf"))


def test_a_type_that_is_left_to_llama_cpp_names_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = model_folder(tmp_path / "m", "qwen3"), tmp_path / "m.gguf"
    flags = ["--input", str(folder), "--to", "gguf", "--output", str(output)]
    assert run_verb("convert", [*flags, "--quantize", "q4_k_m"]) == 2
    assert "llama-quantize MODEL.gguf MODEL-q4_k_m.gguf Q4_K_M" in capsys.readouterr().err
    assert run_verb("convert", [*flags, "--dtype", "bf16"]) == 2
    assert "--quantize" in capsys.readouterr().err
    assert not output.exists()
    assert run_verb("convert", flags) == 0


def test_values_beyond_the_type_are_refused(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", "qwen3")
    source = open_source(folder)
    shapes = {name: source.tensors.shape(name) for name in source.tensors}
    large = [(name, source.tensors[name] * 1e6) for name in source.tensors]
    write_safetensors(folder / "model.safetensors", shapes, torch.float32, large, {"format": "pt"})
    with pytest.raises(CheckpointError, match="too large for f16"):
        convert(folder, "gguf", tmp_path / "m.gguf", ConvertOptions(quantize="f16"))


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", "qwen3")
    for file in folder.glob("tokenizer*"):
        file.rename(tmp_path / file.name)
    with pytest.raises(ConfigError, match="--tokenizer FOLDER"):
        convert(folder, "gguf", tmp_path / "m.gguf", ConvertOptions())
    convert(folder, "gguf", tmp_path / "m.gguf", ConvertOptions(tokenizer=tmp_path))
    assert contents(tmp_path / "m.gguf")["tokenizer.ggml.model"] == "gpt2"


def test_types_are_numbers_that_numpy_reads_alike(qwen3_file: Path) -> None:
    """The bytes of an f32 matrix are the matrix, transposed dimensions and all."""
    source = open_source(qwen3_file.with_suffix(""))
    found = {t.name: t for t in gguf.GGUFReader(qwen3_file).tensors}
    down = found["blk.1.ffn_down.weight"]
    expected = source.tensors["model.layers.1.mlp.down_proj.weight"].numpy()
    assert list(down.shape) == list(reversed(expected.shape))
    np.testing.assert_array_equal(down.data, expected)

"""Folders that cannot be used: each error names the file, the field or the tensor."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_folders import edit_config, edit_tensors
from safetensors.torch import load_file
from small_adapters import named
from small_models import EXPERTS
from torch import Tensor

from minimind.config.model import ModelConfig
from minimind.errors import CheckpointError
from minimind.model.state_dict import join_fused, load_hf_config, load_hf_folder
from minimind.model.transformer import Transformer

Saved = Callable[..., tuple[Path, Transformer]]


DENSE = [
    ({"model_type": "gpt2"}, ["'gpt2'", "llama", "qwen3"]),
    ({"model_type": "qwen2"}, ["'qwen2'", "biases"]),
    ({"model_type": None}, ["not the config.json of a model"]),
    ({"hidden_size": None}, ["hidden_size", "missing"]),
    ({"hidden_size": "32"}, ["hidden_size", "'32'"]),
    ({"num_attention_heads": 3}, ["num_attention_heads", "3"]),
    ({"attention_bias": True}, ["attention_bias", "True"]),
    ({"mlp_bias": True}, ["mlp_bias"]),
    ({"hidden_act": "gelu"}, ["hidden_act", "'gelu'", "silu"]),
    ({"use_sliding_window": True}, ["use_sliding_window"]),
    ({"layer_types": ["full_attention", "sliding_attention"]}, ["sliding_attention"]),
    ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor", "0.5"]),
    ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, ["'dynamic'", "llama3"]),
    ({"rope_scaling": {"rope_type": "linear"}}, ["rope_scaling", "factor"]),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, ["low_freq_factor"]),
    ({"rope_scaling": {"rope_type": "yarn"}}, ["rope_scaling", "factor"]),
    ({"rope_scaling": {"rope_type": "yarn", "factor": "x"}}, ["rope_scaling", "factor"]),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "mscale": 1.0}}, ["mscale"]),
    ({"minimind": {"speed": 3}}, ["speed"]),
    ({"minimind": 3}, ["not the config.json of a model"]),
    ({"rope_scaling": {"rope_type": []}}, ["rope_scaling is of type []", "known: yarn"]),
    ({"rope_parameters": {"type": {}}}, ["rope_scaling is of type {}", "known: yarn"]),
    ({"num_hidden_layers": "2"}, ["num_hidden_layers", "'2'"]),
    ({"layer_types": 5}, ["not the config.json of a model"]),
]
OF_EXPERTS = [
    ({"num_experts": 1}, ["num_experts", "1"]),
    ({"num_experts": "4"}, ["num_experts", "'4'"]),
    ({"num_experts_per_tok": 7}, ["num_experts_per_tok", "7"]),
    ({"mlp_only_layers": "all"}, ["mlp_only_layers", "'all'"]),
    ({"mlp_only_layers": [0, 1]}, ["mlp_only_layers", "all 2 layers"]),
    ({"decoder_sparse_step": 3}, ["mlp_only_layers", "all 2 layers"]),
    ({"model_type": "qwen4_moe"}, ["qwen4_moe", "'qwen3_moe'", "'minimind_moe'"]),
    ({"model_type": ["qwen3"]}, ["['qwen3']", "'qwen3_moe'"]),
]


@pytest.mark.parametrize(
    ("experts", "changes", "words"),
    [*(({}, *row) for row in DENSE), *((EXPERTS[0], *row) for row in OF_EXPERTS)],
    ids=str,
)
@pytest.mark.faults("a config.json with wrong values", "the field is named")
def test_a_configuration_that_cannot_be_used_is_named(
    saved: Saved, experts: dict[str, Any], changes: dict[str, Any], words: list[str]
):
    folder, _ = saved(**experts)
    edit_config(folder, **changes)
    with pytest.raises(CheckpointError) as caught:
        load_hf_config(folder)
    for word in [str(folder / "config.json"), *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", "3", "null"])
@pytest.mark.faults("a config.json that is none", "named")
def test_a_configuration_that_is_none(tmp_path: Path, text: str):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json: not the config.json of a model"):
        load_hf_config(tmp_path)
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read"):
        load_hf_config(tmp_path / "nothing")


NORM = "model.layers.1.input_layernorm.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(NORM), [NORM, "missing"]),
        (lambda t: t.pop("model.layers.0.mlp.up_proj.weight"), ["0.mlp.up_proj", "missing"]),
        (lambda t: t.update({"model.extra": torch.ones(1)}), ["model.extra", "not of this model"]),
        (lambda t: t.update({NORM: torch.ones(33)}), [NORM, "[33]", "[32]"]),
        (lambda t: t.update({NORM: torch.ones(32, 1)}), [NORM, "[32, 1]", "[32]"]),
        (
            lambda t: t.update({"model.embed_tokens.weight": torch.ones(98, 32)}),
            ["embed_tokens", "[98, 32]", "[97, 32]"],
        ),
        (
            # As many rows in all, split otherwise between query and key heads.
            lambda t: t.update({"model.layers.0.self_attn.q_proj.weight": torch.ones(36, 32)}),
            ["q_proj", "[36, 32]", "[48, 32]"],
        ),
        (
            lambda t: t.update({"lm_head.weight": torch.ones(97, 32)}),
            ["lm_head.weight", "differs", "tie_word_embeddings"],
        ),
    ],
)
@pytest.mark.faults("a tensor missing, misshapen or unknown", "named")
def test_a_wrong_tensor_is_named(
    saved: Saved,
    change: Callable[[dict[str, Tensor]], object],
    words: list[str],
):
    folder, _ = saved()
    edit_tensors(folder, change)
    with pytest.raises(CheckpointError) as caught:
        load_hf_folder(folder)
    for word in [str(folder), *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_output_head_equal_to_tied_embeddings_is_left_out(saved: Saved, dtype: torch.dtype):
    folder, model = saved()

    def add_head(tensors: dict[str, Tensor]) -> None:
        embedding = tensors["model.embed_tokens.weight"].to(dtype)
        tensors["model.embed_tokens.weight"] = embedding
        tensors["lm_head.weight"] = embedding.clone()

    edit_tensors(folder, add_head)
    assert load_hf_folder(folder)[1].keys() == named(model).keys()


def test_an_untied_head_that_is_missing_is_named(
    saved: Saved,
):
    folder, _ = saved()
    edit_config(folder, tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is missing"):
        load_hf_folder(folder)


@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "header", "folder"])
@pytest.mark.faults("weights cut, empty or garbage", "named")
def test_a_damaged_file_is_named(saved: Saved, damage: str):
    folder, _ = saved()
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        contents = {"empty": b"", "cut": whole[:-100], "noise": os.urandom(2000)}
        path.write_bytes(contents.get(damage, whole[:8] + b"x" + whole[9:]))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a readable safetensors"):
        load_hf_folder(folder)


def test_a_missing_file_is_named(saved: Saved):
    folder, _ = saved()
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"none of model\.safetensors, model\.safet.*json\)"):
        load_hf_folder(folder)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'])
@pytest.mark.faults("a wrong safetensors index", "named")
def test_a_wrong_index_is_named(saved: Saved, text: str):
    folder, _ = saved()
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json: not an index of weights"):
        load_hf_folder(folder)


def test_a_missing_shard_is_named(hf_saved: Callable[..., Path]):
    folder = hf_saved("LlamaConfig", shards=True)
    first = min(folder.glob("model-*.safetensors"))
    first.unlink()
    with pytest.raises(CheckpointError, match=first.name):
        load_hf_folder(folder)


@pytest.mark.faults("weights of another model", "refused")
def test_weights_of_another_model_are_refused(saved: Saved):
    folder, model = saved()
    for changes in ({"num_hidden_layers": 1}, {"use_qk_norm": False}, {"num_hidden_layers": 3}):
        other = ModelConfig(**(model.config.to_dict() | changes))
        with pytest.raises(CheckpointError, match=r"not of this model|is missing"):
            join_fused(other, load_file(folder / "model.safetensors"), "test")

"""Tensor names, and Hugging Face folders that are written for `transformers` and read again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_folders import IDS, logits_in, transformers_logits
from small_adapters import named
from small_models import FAMILIES, logits_of, pack, random_model, small_config

from minimind.model.state_dict import join_fused, load_hf_folder, save_hf_folder, split_fused
from minimind.model.transformer import Transformer

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "untied": {"tie_word_embeddings": False},
    "yarn": {
        "rope_theta": 1e4,
        "rope_scaling": {"rope_type": "yarn", "original_max_position_embeddings": 16},
    },
    "one key head": {"num_key_value_heads": 1},
    "all heads": {"num_key_value_heads": 4, "head_dim": 8},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_fused_tensors_split_and_join_bitwise(family: str, shape: str):
    config = small_config(family, **SHAPES[shape])
    inside = named(random_model(config))
    outside = split_fused(config, inside)
    again = join_fused(config, outside, "test")
    assert again.keys() == inside.keys()
    for name in inside:
        assert torch.equal(again[name], inside[name]), name
    assert sum(t.numel() for t in outside.values()) == config.num_parameters


@pytest.mark.parametrize("family", FAMILIES)
def test_names_and_shapes_are_those_of_the_specification(family: str):
    config = small_config(family, tie_word_embeddings=False, num_hidden_layers=1)
    norm = {"self_attn.q_norm": [12], "self_attn.k_norm": [12]} if family == "qwen3" else {}
    layer = {
        "self_attn.q_proj": [48, 32],
        "self_attn.k_proj": [24, 32],
        "self_attn.v_proj": [24, 32],
        "self_attn.o_proj": [32, 48],
        **norm,
        "input_layernorm": [32],
        "post_attention_layernorm": [32],
        "mlp.gate_proj": [48, 32],
        "mlp.up_proj": [48, 32],
        "mlp.down_proj": [32, 48],
    }
    expected = {f"model.layers.0.{name}.weight": shape for name, shape in layer.items()}
    expected |= {"model.embed_tokens.weight": [97, 32], "lm_head.weight": [97, 32]}
    expected |= {"model.norm.weight": [32]}
    outside = split_fused(config, named(random_model(config)))
    assert {name: list(tensor.shape) for name, tensor in outside.items()} == expected


def test_each_part_is_the_rows_it_should_be():
    config = small_config(num_hidden_layers=1)
    model = random_model(config)
    outside = split_fused(config, named(model))
    x = torch.randn(3, 32)
    fused = x @ named(model)["layers.0.self_attn.qkv_proj.weight"].T
    for name, columns in (("q", slice(0, 48)), ("k", slice(48, 72)), ("v", slice(72, 96))):
        weight = outside[f"model.layers.0.self_attn.{name}_proj.weight"]
        torch.testing.assert_close(x @ weight.T, fused[:, columns])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_written_is_what_is_read(tmp_path: Path, dtype: torch.dtype):
    config = small_config(dropout=0.1, rope_scaling="yarn", norm_cast_before_weight=False)
    inside = named(random_model(config))
    save_hf_folder(tmp_path / "a" / "b", config, inside, dtype)
    read, weights = load_hf_folder(tmp_path / "a" / "b")
    assert read == config
    assert weights.keys() == inside.keys()
    for name in inside:
        assert torch.equal(weights[name], inside[name].to(dtype)), name
    values = json.loads((tmp_path / "a" / "b" / "config.json").read_text())
    assert values["dtype"] == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_computes_the_same_logits(
    saved: Callable[..., tuple[Path, Transformer]], family: str, shape: str
):
    folder, model = saved(family, **SHAPES[shape])
    with torch.no_grad():
        expected = logits_of(model, pack([[IDS]]))
    torch.testing.assert_close(transformers_logits(folder), expected, atol=2e-5, rtol=1e-4)
    assert torch.equal(logits_in(folder), expected)


def test_a_folder_is_readable_by_whom_other_files_are(tmp_path: Path):
    config = small_config()
    save_hf_folder(tmp_path, config, named(random_model(config)), torch.float32)
    modes = {path.name: path.stat().st_mode for path in tmp_path.iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]


@pytest.mark.parametrize(
    "scaling",
    [
        "yarn",
        {"rope_type": "linear", "factor": 2.5},
        {
            "rope_type": "llama3",
            "factor": 2.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 3.0,
            "original_max_position_embeddings": 64,
        },
    ],
    ids=str,
)
def test_a_folder_that_transformers_writes_again_keeps_everything(
    saved: Callable[..., tuple[Path, Transformer]], tmp_path: Path, scaling: Any
):
    from transformers import AutoModelForCausalLM

    folder, model = saved(rope_scaling=scaling, dropout=0.2, norm_cast_before_weight=False)
    again = tmp_path / "again"
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(again)
    config, weights = load_hf_folder(again)
    assert config == model.config
    for name, tensor in named(model).items():
        assert torch.equal(weights[name], tensor)

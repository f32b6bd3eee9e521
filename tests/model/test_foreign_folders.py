"""Folders that `transformers` writes, of this version and of older ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_folders import edit_config, logits_in, transformers_logits

from minimind.model.state_dict import load_hf_config

LLAMA_YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}
LINEAR = {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 100.0,
}


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("LlamaConfig", {}),
        ("LlamaConfig", {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
        ("LlamaConfig", {"head_dim": 12, "rope_parameters": {"rope_theta": 5e5}}),
        ("LlamaConfig", {"rope_parameters": LLAMA_YARN, "max_position_embeddings": 64}),
        ("LlamaConfig", {"rope_parameters": LINEAR}),
        ("LlamaConfig", {"head_dim": 16, "rope_parameters": LLAMA3}),
        ("Qwen3Config", {"head_dim": 16, "rope_parameters": LLAMA3}),
        ("LlamaConfig", {"eos_token_id": [2, 3], "pad_token_id": None}),
        ("Qwen3Config", {"head_dim": 8}),
        ("Qwen3Config", {"head_dim": 8, "tie_word_embeddings": True}),
        (
            "Qwen3Config",
            {
                "head_dim": 8,
                "rope_parameters": {
                    **LLAMA_YARN,
                    "original_max_position_embeddings": 16,
                    "beta_fast": 8.0,
                    "beta_slow": 2.0,
                    "attention_factor": 0.9,
                },
            },
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("shards", [False, True], ids=["one file", "shards"])
def test_what_transformers_writes_is_read(
    hf_saved: Callable[..., Path], kind: str, fields: dict[str, Any], shards: bool
):
    folder = hf_saved(kind, shards, **fields)
    torch.testing.assert_close(logits_in(folder), transformers_logits(folder), atol=2e-5, rtol=1e-4)
    assert load_hf_config(folder).norm_cast_before_weight


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        {"type": "yarn", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "attention_factor": None, "truncate": True},
        {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 20},
        {"type": "linear", "factor": 2.0},
        {k: v for k, v in LLAMA3.items() if k != "rope_theta"},
        {"rope_type": "default"},
    ],
    ids=str,
)
def test_the_older_spelling_of_a_configuration_is_read(
    hf_saved: Callable[..., Path], scaling: dict[str, Any] | None
):
    folder = hf_saved("LlamaConfig", max_position_embeddings=64)
    edit_config(
        folder,
        rope_parameters=None,
        dtype=None,
        torch_dtype="float32",
        rope_theta=3e4,
        rope_scaling=scaling,
    )
    assert load_hf_config(folder).rope_theta == 3e4
    torch.testing.assert_close(logits_in(folder), transformers_logits(folder), atol=2e-5, rtol=1e-4)


def test_what_an_old_configuration_leaves_out_is_hugging_faces_default(
    hf_saved: Callable[..., Path],
):
    folder = hf_saved("LlamaConfig", num_key_value_heads=4)
    left_out = ("rope_parameters", "num_key_value_heads", "head_dim", "tie_word_embeddings")
    left_out += ("rms_norm_eps", "max_position_embeddings", "initializer_range", "pad_token_id")
    edit_config(folder, **dict.fromkeys(left_out))
    config = load_hf_config(folder)
    assert (config.rope_theta, config.num_key_value_heads, config.head_dim) == (1e4, 4, 8)
    assert (config.tie_word_embeddings, config.rms_norm_eps) == (False, 1e-6)
    assert config.max_position_embeddings == 2048
    torch.testing.assert_close(logits_in(folder), transformers_logits(folder), atol=2e-5, rtol=1e-4)

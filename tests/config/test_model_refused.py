"""What the message of a wrong field, file or name says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from rope_scalings import LLAMA3

from minimind.config.model import load_model_config
from minimind.errors import ConfigError


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"hidden_sizes": 640}, ["hidden_sizes", "known", "hidden_size"]),
        ({"hidden_size": "640"}, ["hidden_size", "'640'", "int"]),
        ({"hidden_size": 640.0}, ["hidden_size", "640.0", "int"]),
        ({"hidden_size": True}, ["hidden_size", "True", "int"]),
        ({"rope_theta": True}, ["rope_theta", "True", "number"]),
        ({"use_qk_norm": 1}, ["use_qk_norm", "1", "bool"]),
        ({"hidden_size": None}, ["hidden_size", "None", "int"]),
        ({"model_type": 3}, ["model_type", "3", "llama", "qwen3"]),
        ({"model_type": "gpt2"}, ["model_type", "'gpt2'", "llama", "qwen3"]),
        ({"num_attention_heads": 7}, ["hidden_size", "num_attention_heads", "7", "head_dim"]),
        ({"num_key_value_heads": 3}, ["num_attention_heads", "num_key_value_heads", "3"]),
        ({"head_dim": 33}, ["head_dim", "33", "odd"]),
        ({"head_dim": -2}, ["head_dim", "-2"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers", "0", "at least 1"]),
        ({"hidden_size": 0}, ["hidden_size", "0", "at least 1"]),
        ({"hidden_size": -64}, ["hidden_size", "-64", "at least 1"]),
        ({"num_attention_heads": 0}, ["num_attention_heads", "0"]),
        ({"num_key_value_heads": 0}, ["num_key_value_heads", "0"]),
        ({"vocab_size": 0}, ["vocab_size", "0"]),
        ({"dropout": 1.0}, ["dropout", "1.0", "below 1"]),
        ({"dropout": -0.1}, ["dropout", "-0.1"]),
        ({"dropout": math.nan}, ["dropout", "nan"]),
        ({"rms_norm_eps": 0.0}, ["rms_norm_eps", "above 0"]),
        ({"rope_theta": 1.0}, ["rope_theta", "above 1"]),
        ({"initializer_range": math.inf}, ["initializer_range", "inf"]),
        ({"rope_scaling": "linear"}, ["rope_scaling", "'linear'", "yarn"]),
        ({"rope_scaling": {"rope_type": "ntk"}}, ["rope_scaling", "ntk", "yarn", "llama3"]),
        ({"rope_scaling": {"rope_type": ["yarn"]}}, ["rope_scaling", "yarn", "llama3"]),
        ({"rope_scaling": {"rope_type": "linear"}}, ["rope_scaling", "factor", "None"]),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2, "beta_fast": 1}}, ["beta_fast"]),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, ["high_freq_factor", "above"]),
        ({"rope_scaling": {"rope_type": "yarn", "fast": 1}}, ["rope_scaling", "fast"]),
        ({"rope_scaling": {"rope_type": "yarn", "factor": "4"}}, ["factor", "'4'", "number"]),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 0}}, ["factor", "0", "above 0"]),
        ({"rope_scaling": {"rope_type": "yarn", "beta_fast": None}}, ["beta_fast", "None"]),
        ({"rope_scaling": ["yarn"]}, ["rope_scaling", "yarn"]),
        ({"num_experts": 1}, ["num_experts", "1", "2 to 256"]),
        ({"num_experts": 257}, ["num_experts", "257", "2 to 256"]),
        ({"num_experts": -4}, ["num_experts", "-4", "2 to 256"]),
        ({"num_experts_per_tok": 2}, ["num_experts_per_tok", "2", "dense", "give num_experts"]),
        ({"n_shared_experts": 1}, ["n_shared_experts", "1", "give num_experts"]),
        ({"moe_intermediate_size": 64}, ["moe_intermediate_size", "64", "give num_experts"]),
        ({"mlp_only_layers": [0]}, ["mlp_only_layers", "give num_experts"]),
        (
            {"num_experts": 4, "num_experts_per_tok": 5},
            ["num_experts_per_tok", "5", "of 4 experts", "1 to 4"],
        ),
        ({"num_experts": 64, "num_experts_per_tok": 9}, ["num_experts_per_tok", "9", "1 to 8"]),
        ({"num_experts": 4, "num_experts_per_tok": 0}, ["num_experts_per_tok", "0", "1 to 4"]),
        ({"num_experts": 4, "moe_intermediate_size": -1}, ["moe_intermediate_size", "-1"]),
        ({"num_experts": 4, "n_shared_experts": -1}, ["n_shared_experts", "-1", "at least 0"]),
        ({"num_experts": 4, "router_aux_loss_coef": math.nan}, ["router_aux_loss_coef", "nan"]),
        ({"num_experts": 4, "mlp_only_layers": 1}, ["mlp_only_layers", "1", "a list"]),
        ({"num_experts": 4, "mlp_only_layers": [True]}, ["mlp_only_layers[0]", "True", "integer"]),
        ({"num_experts": 4, "mlp_only_layers": [8]}, ["mlp_only_layers", "[8]", "from 0 to 7"]),
        ({"num_experts": 4, "mlp_only_layers": [1, 1]}, ["mlp_only_layers", "each once"]),
        (
            {"num_experts": 4, "mlp_only_layers": list(range(8))},
            ["mlp_only_layers", "all 8 layers", "num_experts to 0"],
        ),
    ],
)
def test_a_wrong_field_is_named(overrides: dict[str, Any], words: list[str]):
    with pytest.raises(ConfigError) as caught:
        load_model_config("minimind3", overrides)
    message = str(caught.value)
    assert "minimind3" in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", ["not valid JSON"]),
        ("[1]", ["one JSON object", "list"]),
        ('{"hidden": 3}', ["hidden", "no such model field"]),
        (b"\xff\xfe{}", ["not valid JSON"]),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, content: str | bytes, words: list[str]):
    path = tmp_path / "mine.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        load_model_config(str(path))
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_a_missing_model_says_what_there_is(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"huge.*tiny, minimind2-small.*, minimind3-moe"):
        load_model_config("huge")
    with pytest.raises(ConfigError, match=r"gone\.json.*cannot be read"):
        load_model_config(str(tmp_path / "gone.json"))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_model_config(str(tmp_path))

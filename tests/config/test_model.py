"""Presets to the parameter, and derived sizes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rope_scalings import LLAMA3

from minimind.config.model import PRESETS, ModelConfig, default_intermediate_size, load_model_config
from minimind.model.transformer import Transformer

COUNTS = {
    "minimind2-small": 25_829_888,
    "minimind2": 104_030_976,
    "minimind2-moe": 145_029_760,
    "minimind3": 63_912_192,
    "minimind3-moe": 198_416_640,
}


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_presets_have_their_exact_number_of_parameters(name: str, count: int):
    assert load_model_config(name).num_parameters == count


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("minimind2-small", ("llama", 512, 8, 8, 2, 64, 1408, 6400, False, 1e-5, True)),
        ("minimind2", ("llama", 768, 16, 8, 2, 96, 2048, 6400, False, 1e-5, True)),
        ("minimind2-moe", ("llama", 640, 8, 8, 2, 80, 1728, 6400, False, 1e-5, True)),
        ("minimind3", ("qwen3", 768, 8, 8, 4, 96, 2432, 6400, True, 1e-6, False)),
        ("minimind3-moe", ("qwen3", 768, 8, 8, 4, 96, 2432, 6400, True, 1e-6, False)),
    ],
)
def test_presets_are_those_of_the_specification(name: str, expected: tuple[Any, ...]):
    c = load_model_config(name)
    shape = (c.model_type, c.hidden_size, c.num_hidden_layers, c.num_attention_heads)
    shape += (c.num_key_value_heads, c.head_dim, c.intermediate_size, c.vocab_size)
    assert (*shape, c.use_qk_norm, c.rms_norm_eps, c.norm_cast_before_weight) == expected
    assert c.tie_word_embeddings
    assert (c.rope_theta, c.rope_scaling, c.dropout) == (1e6, None, 0.0)
    assert c.max_position_embeddings == 32768


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("minimind2-moe", (4, 2, 1728, 1, True, 0.01, True)),
        ("minimind3-moe", (4, 1, 2432, 0, True, 5e-4, False)),
        ("minimind3", (0, 1, 0, 0, True, 5e-4, False)),
    ],
)
def test_experts_of_the_presets(name: str, expected: tuple[Any, ...]):
    c = load_model_config(name)
    experts = (c.num_experts, c.num_experts_per_tok, c.moe_intermediate_size, c.n_shared_experts)
    assert (*experts, c.norm_topk_prob, c.router_aux_loss_coef, c.seq_aux) == expected
    assert c.mlp_only_layers == ()


def test_any_model_becomes_a_mixture_of_experts():
    config = load_model_config("tiny", {"num_experts": 4, "num_experts_per_tok": 2})
    assert config.moe_intermediate_size == config.intermediate_size
    assert [config.has_experts(i) for i in range(4)] == [True] * 4
    wide = load_model_config("minimind3-moe", {"hidden_size": 640, "mlp_only_layers": [0, 2]})
    assert wide.moe_intermediate_size == wide.intermediate_size == 2048
    assert [i for i in range(8) if wide.has_experts(i)] == [1, 3, 4, 5, 6, 7]


def test_active_parameters_are_what_one_token_meets():
    """As many as the dense model of the same sizes, and its routers."""
    dense, sparse = load_model_config("minimind3"), load_model_config("minimind3-moe")
    assert dense.num_active_parameters == dense.num_parameters
    assert sparse.num_active_parameters == dense.num_parameters + 8 * 4 * 768
    routers = 6 * 8 * 4 * 768
    assert sparse.flops_per_token(512) == dense.flops_per_token(512) + routers
    # Two routed and one shared expert of 1728, and the router.
    c = load_model_config("minimind2-moe")
    assert c.active_ffn_size == 3 * 1728
    inactive = 8 * 2 * (3 * 640 * 1728)
    assert c.num_active_parameters == c.num_parameters - inactive


def test_when_a_router_learns_from_the_auxiliary_loss_alone():
    def alone(name: str, **overrides: Any) -> bool:
        return load_model_config(name, overrides).router_learns_from_aux_loss_alone

    assert alone("minimind3-moe")
    assert not alone("minimind3-moe", norm_topk_prob=False)
    assert not alone("minimind3-moe", num_experts_per_tok=2)
    assert not alone("minimind2-moe")
    assert not alone("minimind2-moe", num_experts_per_tok=1), "not divided in the 2-series"
    assert not alone("minimind3")


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"tie_word_embeddings": False},
        {"use_qk_norm": False},
        {"head_dim": 24, "num_attention_heads": 6, "num_key_value_heads": 3},
        {"hidden_size": 640, "vocab_size": 501, "num_hidden_layers": 1},
        {"num_experts": 6, "moe_intermediate_size": 96, "n_shared_experts": 2},
        {"num_experts": 2, "num_experts_per_tok": 2, "mlp_only_layers": [0, 3]},
    ],
)
@pytest.mark.parametrize("name", PRESETS)
def test_the_count_is_the_modules_own(name: str, overrides: dict[str, Any]):
    config = load_model_config(name, overrides)
    with torch.device("meta"):
        module = Transformer(config)
    assert config.num_parameters == sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("series", "hidden", "size"),
    # By hand: 8·512/3 = 1365.3, 1365/64 = 21.3; 8·768/3 = 2048 = 32·64; π·768 = 2412.7 = 37.7·64.
    [
        ("llama", 512, 22 * 64),
        ("llama", 768, 32 * 64),
        ("llama", 640, 27 * 64),
        ("qwen3", 768, 38 * 64),
        ("qwen3", 640, 32 * 64),
        ("qwen3", 64, 4 * 64),
        ("qwen3", 20, 64),
        ("llama", 24, 64),
    ],
)
def test_the_feed_forward_size_follows_the_hidden_size(series: str, hidden: int, size: int):
    assert default_intermediate_size(series, hidden) == size


@pytest.mark.parametrize("name", ["minimind2", "minimind3"])
def test_head_and_feed_forward_sizes_follow_another_hidden_size(name: str):
    config = load_model_config(name, {"hidden_size": 640})
    assert config.head_dim == 80
    assert config.intermediate_size == {"minimind2": 1728, "minimind3": 2048}[name]


def test_given_sizes_stay():
    config = load_model_config("minimind3", {"hidden_size": 640, "intermediate_size": 999})
    assert config.intermediate_size == 999
    assert load_model_config("minimind3", {"head_dim": 32}).head_dim == 32
    # 50 is no multiple of 8, and need not be where the head size is given.
    assert load_model_config("tiny", {"hidden_size": 50, "head_dim": 8}).hidden_size == 50


def test_only_tiny_takes_the_tokenizers_vocabulary():
    assert load_model_config("tiny", tokenizer_vocab=777).vocab_size == 777
    assert load_model_config("tiny").vocab_size == 6400
    assert load_model_config("tiny", {"vocab_size": 888}, tokenizer_vocab=777).vocab_size == 888
    assert load_model_config("minimind3", tokenizer_vocab=777).vocab_size == 6400


def test_a_json_file_is_a_model(tmp_path: Path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"hidden_size": 96, "num_attention_heads": 4}))
    config = load_model_config(str(path), {"num_hidden_layers": 3})
    assert (config.hidden_size, config.head_dim, config.num_hidden_layers) == (96, 24, 3)
    assert config.intermediate_size == 64 * math.ceil(math.pi * 96 / 64)


def test_a_configuration_survives_its_dictionary():
    for name in PRESETS:
        changes: dict[str, Any] = {"rope_scaling": "yarn"}
        if "moe" in name:
            changes["mlp_only_layers"] = [1]
        config = load_model_config(name, changes)
        text = json.dumps(config.to_dict())
        assert ModelConfig.from_dict(json.loads(text), "test") == config


def test_llama3_and_linear_are_kept_as_given():
    for scaling in (LLAMA3, {"rope_type": "linear", "factor": 2}):
        assert load_model_config("tiny", {"rope_scaling": scaling}).rope_scaling == scaling


def test_yarn_by_its_name_and_in_part():
    whole = load_model_config("tiny", {"rope_scaling": "yarn"}).rope_scaling
    assert whole == {
        "rope_type": "yarn",
        "factor": 16.0,
        "original_max_position_embeddings": 2048,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "attention_factor": 1.0,
    }
    part = load_model_config("tiny", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}})
    assert part.rope_scaling == {**whole, "factor": 4.0}


def test_flops_count_every_product_three_times():
    """Forward and twice that backward, two operations a multiplication; attention at its full
    length, as PaLM's formula has it."""
    c = load_model_config("minimind3")
    per_layer = 768 * (8 + 2 * 4) * 96 + 8 * 96 * 768 + 3 * 768 * 2432
    products = 8 * per_layer + 768 * 6400
    attention = 8 * 2 * (8 * 96) * 1024
    expected = 6 * (products + attention)
    assert c.flops_per_token(1024) == pytest.approx(expected, rel=1e-3)

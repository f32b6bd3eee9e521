"""Which linears get an adapter, of what rank and alpha."""

from __future__ import annotations

import dataclasses

import pytest
from small_adapters import ranks_of
from small_models import small_config

from minimind.errors import ConfigError
from minimind.lora.options import AdapterOptions

CONFIG = small_config()
EVERY = dict.fromkeys(
    ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), 16
)


def kinds_of(recipe: AdapterOptions) -> dict[str, int]:
    """Ranks by the last word of a name, the same in every layer."""
    ranks = recipe.choose_ranks(CONFIG).ranks
    kinds = {name.rpartition(".")[2]: rank for name, rank in ranks.items()}
    assert ranks_of(CONFIG, kinds) == ranks
    return kinds


def test_by_default_every_linear_of_the_blocks_has_rank_16_and_scale_2():
    chosen = AdapterOptions().choose_ranks(CONFIG)
    assert kinds_of(AdapterOptions()) == EVERY
    assert set(chosen.alphas.values()) == {32.0}


def test_the_original_preset_takes_square_linears_at_scale_1():
    square = small_config(head_dim=8)  # 4 heads of 8 are the hidden size of 32
    chosen = AdapterOptions(lora_preset="original").choose_ranks(square)
    assert chosen.ranks == ranks_of(square, {"q_proj": 16, "o_proj": 16})
    assert chosen.alphas == dict.fromkeys(chosen.ranks, 16.0)
    as_many_keys = small_config(head_dim=8, num_key_value_heads=4)
    chosen = AdapterOptions(lora_preset="original").choose_ranks(as_many_keys)
    assert chosen.ranks == ranks_of(
        as_many_keys, dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), 16)
    )
    with pytest.raises(ConfigError, match="no linear gets an adapter"):
        AdapterOptions(lora_preset="original").choose_ranks(CONFIG)


@pytest.mark.parametrize(
    ("ranks", "kinds"),
    [
        ({"q_proj": 4, "v_proj": 8}, {"q_proj": 4, "v_proj": 8}),
        ({"qkv_proj": 4}, {"q_proj": 4, "k_proj": 4, "v_proj": 4}),
        ({"": 2, "gate_up_proj": 0, "self_attn": 3, "o_proj": 5},
         {"q_proj": 3, "k_proj": 3, "v_proj": 3, "o_proj": 5, "down_proj": 2}),
    ],
)  # fmt: skip
def test_ranks_go_by_pattern_and_the_last_match_counts(
    ranks: dict[str, int], kinds: dict[str, int]
):
    assert kinds_of(AdapterOptions(lora_ranks=ranks)) == kinds


def test_alphas_and_layers_go_by_pattern():
    recipe = AdapterOptions(lora_ranks={r"layers\.1\.": 4}, lora_alphas={"mlp": 8.0})
    chosen = recipe.choose_ranks(CONFIG)
    assert all(name.startswith("model.layers.1.") for name in chosen.ranks)
    assert chosen.alphas["model.layers.1.mlp.up_proj"] == 8.0
    assert chosen.alphas["model.layers.1.self_attn.q_proj"] == 32.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_preset": "some"}, "lora_preset is 'some'; it must be one of all, original"),
        ({"lora_preset": "original", "lora_ranks": {"q_proj": 1}}, "contradict"),
        ({"lora_ranks": {"(": 4}}, "the pattern '\\('"),
        ({"lora_ranks": {"q_proj": -1}}, "lora_ranks holds -1"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(AdapterOptions(), **options).check()  # type: ignore[arg-type]


def test_patterns_that_match_nothing_are_refused_with_the_names():
    with pytest.raises(
        ConfigError,
        match=r"matches wq; there is .*: model\.layers\.0\.self_attn\.q_pr",
    ):
        AdapterOptions(lora_ranks={"q_proj": 4, "wq": 4}).choose_ranks(CONFIG)


def test_ranks_take_the_names_of_the_models_parts():
    attention = {"q_proj", "k_proj", "v_proj", "o_proj"}
    feed_forward = {"gate_proj", "up_proj", "down_proj"}
    of_both = dict.fromkeys(attention, 8) | dict.fromkeys(feed_forward, 16)
    assert kinds_of(AdapterOptions(lora_ranks={"attention": 8, "mlp": 16})) == of_both
    # Whatever its place, and also where nothing is left for it.
    assert kinds_of(AdapterOptions(lora_ranks={"attention": 8, "default": 16})) == of_both
    everything = {"attention": 8, "mlp": 16, "default": 4}
    assert kinds_of(AdapterOptions(lora_ranks=everything)) == of_both
    chosen = AdapterOptions(lora_alphas={"attention": 8.0, "default": 4.0}).choose_ranks(CONFIG)
    assert chosen.alphas["model.layers.1.mlp.up_proj"] == 4.0
    assert chosen.alphas["model.layers.1.self_attn.q_proj"] == 8.0
    with pytest.raises(ConfigError, match=r"matches atention; there is attention, mlp, default"):
        AdapterOptions(lora_ranks={"atention": 8}).choose_ranks(CONFIG)

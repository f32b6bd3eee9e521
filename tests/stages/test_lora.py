"""Which linears get an adapter, what starting and going on need, what a run is told of its size."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from small_adapters import named, ranks_of
from small_models import random_model, small_config

from minimind.config.model import load_model_config
from minimind.engine.stage import BuildContext
from minimind.errors import CheckpointError, ConfigError
from minimind.model.adapter import Adapter
from minimind.model.adapter_folder import BaseModel, save_adapter
from minimind.model.lora import collect_adapter
from minimind.model.state_dict import save_hf_folder
from minimind.stages import STAGES
from minimind.stages.adapter_plot import plot_adapter
from minimind.stages.lora import Lora, LoraRecipe
from minimind.stages.sft import SFT

CONFIG = small_config()
EVERY = dict.fromkeys(
    ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), 16
)


def kinds_of(recipe: LoraRecipe) -> dict[str, int]:
    """Ranks by the last word of a name, the same in every layer."""
    ranks = recipe.plan(CONFIG).ranks
    kinds = {name.rpartition(".")[2]: rank for name, rank in ranks.items()}
    assert ranks_of(CONFIG, kinds) == ranks
    return kinds


def test_by_default_every_linear_of_the_blocks_has_rank_16_and_scale_2():
    plan = LoraRecipe().plan(CONFIG)
    assert kinds_of(LoraRecipe()) == EVERY
    assert set(plan.alphas.values()) == {32.0}


def test_the_original_preset_takes_square_linears_at_scale_1():
    square = small_config(head_dim=8)  # 4 heads of 8 are the hidden size of 32
    plan = LoraRecipe(lora_preset="original").plan(square)
    assert plan.ranks == ranks_of(square, {"q_proj": 16, "o_proj": 16})
    assert plan.alphas == dict.fromkeys(plan.ranks, 16.0)
    as_many_keys = small_config(head_dim=8, num_key_value_heads=4)
    plan = LoraRecipe(lora_preset="original").plan(as_many_keys)
    assert plan.ranks == ranks_of(
        as_many_keys, dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), 16)
    )
    with pytest.raises(ConfigError, match="no linear gets an adapter"):
        LoraRecipe(lora_preset="original").plan(CONFIG)


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
    assert kinds_of(LoraRecipe(lora_ranks=ranks)) == kinds


def test_alphas_and_layers_go_by_pattern():
    recipe = LoraRecipe(lora_ranks={r"layers\.1\.": 4}, lora_alphas={"mlp": 8.0})
    plan = recipe.plan(CONFIG)
    assert all(name.startswith("model.layers.1.") for name in plan.ranks)
    assert plan.alphas["model.layers.1.mlp.up_proj"] == 8.0
    assert plan.alphas["model.layers.1.self_attn.q_proj"] == 32.0


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
        dataclasses.replace(LoraRecipe(), **options).check()  # type: ignore[arg-type]


def test_patterns_that_match_nothing_are_refused_with_the_names():
    with pytest.raises(
        ConfigError,
        match=r"matches wq; there is .*: model\.layers\.0\.self_attn\.q_pr",
    ):
        LoraRecipe(lora_ranks={"q_proj": 4, "wq": 4}).plan(CONFIG)


def test_the_count_is_that_of_the_parameters(base: Path):
    recipe = LoraRecipe(lora_ranks={"q_proj": 3, "v_proj": 5, "up_proj": 2})
    policy = Lora(recipe).build_models(start_from(base)).policy
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in policy.parameters() if not p.requires_grad)
    assert recipe.count_weights(CONFIG) == (trained, frozen)
    minimind3 = load_model_config("minimind3")
    # Per layer 16 · (768+768 + 2·(768+384) + 768+768 + 3·(768+2432)).
    assert LoraRecipe().count_weights(minimind3) == (8 * 16 * 14976, 63_912_192)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    save_hf_folder(folder, CONFIG, named(random_model(CONFIG)), torch.float32)
    return folder


def start_from(folder: Path) -> BuildContext:
    weights = named(random_model(CONFIG))
    return BuildContext(config=CONFIG, weights=weights, weights_folder=folder)


def test_it_is_sft_on_another_model(base: Path):
    assert isinstance(STAGES["lora"](LoraRecipe()), SFT)
    context = dataclasses.replace(start_from(base), dtype=torch.bfloat16)
    policy = Lora(LoraRecipe(activation_checkpointing=True)).build_models(context).policy
    assert policy.activation_checkpointing
    for name, parameter in policy.named_parameters():
        is_adapter = "lora" in name
        assert parameter.requires_grad == is_adapter
        assert parameter.dtype == (torch.float32 if is_adapter else torch.bfloat16)


def test_starting_fresh_is_refused():
    with pytest.raises(ConfigError, match="cannot start fresh: give --from_checkpoint"):
        Lora(LoraRecipe()).build_models(BuildContext(config=CONFIG))


def saved_adapter(base: Path, recipe: LoraRecipe) -> Adapter:
    policy = Lora(recipe).build_models(start_from(base)).policy
    return collect_adapter(policy, named(policy))


def test_a_resumed_run_goes_on_beside_the_base_its_adapter_names(base: Path, tmp_path: Path):
    """A link to the best checkpoint of the base's run may name another one by then."""
    recipe = LoraRecipe()
    checkpoint = tmp_path / "step-00000002"
    save_adapter(checkpoint / "adapter", CONFIG, saved_adapter(base, recipe), BaseModel.of(base))
    other = tmp_path / "other"
    save_hf_folder(other, CONFIG, named(random_model(CONFIG, seed=1)), torch.float32)
    context = BuildContext(config=CONFIG, weights_folder=other, checkpoint=checkpoint)
    policy = Lora(recipe).build_models(context).policy
    expected = named(random_model(CONFIG))
    for name, parameter in policy.named_parameters():
        if "lora" not in name:
            assert torch.equal(parameter, expected[name]), name
    base.rename(tmp_path / "gone")
    with pytest.raises(CheckpointError, match="was not found"):
        Lora(recipe).build_models(context)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_ranks": {"q_proj": 4}}, "rank 16 and alpha 32.* at .*q_proj, not rank 4"),
        ({"lora_ranks": {"k_proj": 16}}, "rank 16 .* at .*q_proj, not rank 0"),
        ({"lora_alphas": {"q_proj": 1.0}}, "alpha 32.* at .*q_proj, not rank 16 and alpha 1.0"),
    ],
)
def test_a_checkpoint_with_other_adapters_is_refused(
    base: Path, tmp_path: Path, options: dict[str, object], message: str
):
    adapter = saved_adapter(base, LoraRecipe(lora_ranks={"q_proj": 16}))
    save_adapter(tmp_path / "adapter", CONFIG, adapter, BaseModel.of(base))
    recipe = LoraRecipe(lora_ranks={"q_proj": 16})
    recipe = dataclasses.replace(recipe, **options)  # type: ignore[arg-type]
    context = BuildContext(config=CONFIG, weights_folder=base, checkpoint=tmp_path)
    with pytest.raises(CheckpointError, match=message):
        Lora(recipe).build_models(context)


def test_the_picture_is_written_whole(base: Path, tmp_path: Path):
    plot_adapter(saved_adapter(base, LoraRecipe()), tmp_path / "adapter.png")
    assert (tmp_path / "adapter.png").read_bytes().startswith(b"\x89PNG")
    plot_adapter({}, tmp_path / "none.png")  # logged, and no more
    assert sorted(p.suffix for p in tmp_path.iterdir() if p.is_file()) == [".png"]


def test_ranks_take_the_names_of_the_models_parts():
    attention = {"q_proj", "k_proj", "v_proj", "o_proj"}
    feed_forward = {"gate_proj", "up_proj", "down_proj"}
    of_both = dict.fromkeys(attention, 8) | dict.fromkeys(feed_forward, 16)
    assert kinds_of(LoraRecipe(lora_ranks={"attention": 8, "mlp": 16})) == of_both
    # Whatever its place, and also where nothing is left for it.
    assert kinds_of(LoraRecipe(lora_ranks={"attention": 8, "default": 16})) == of_both
    everything = {"attention": 8, "mlp": 16, "default": 4}
    assert kinds_of(LoraRecipe(lora_ranks=everything)) == of_both
    plan = LoraRecipe(lora_alphas={"attention": 8.0, "default": 4.0}).plan(CONFIG)
    assert plan.alphas["model.layers.1.mlp.up_proj"] == 4.0
    assert plan.alphas["model.layers.1.self_attn.q_proj"] == 8.0
    with pytest.raises(ConfigError, match=r"matches atention; there is attention, mlp, default"):
        LoraRecipe(lora_ranks={"atention": 8}).plan(CONFIG)


def test_the_outline_has_the_names_and_shapes_of_what_is_built(base: Path):
    stage = Lora(LoraRecipe(lora_ranks={"q_proj": 3, "mlp": 5}))
    outline, policy = stage.outline(CONFIG), stage.build_models(start_from(base)).policy
    built = {name: (p.shape, p.requires_grad) for name, p in policy.named_parameters()}
    assert {n: (p.shape, p.requires_grad) for n, p in outline.named_parameters()} == built
    assert all(parameter.is_meta for parameter in outline.parameters())

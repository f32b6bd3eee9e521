"""What starting and going on with adapters need, and what a run is told of their size."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from small_adapters import named
from small_models import random_model, small_config

from minimind.config.model import load_model_config
from minimind.engine.stage import BuildContext
from minimind.errors import CheckpointError, ConfigError
from minimind.lora.adapter import Adapter
from minimind.lora.folder import BaseModel
from minimind.lora.model import collect_adapter
from minimind.lora.peft_format import save_adapter
from minimind.model.state_dict import save_hf_folder
from minimind.stages import STAGES
from minimind.stages.lora import Lora, LoraRecipe
from minimind.stages.sft import SFT

CONFIG = small_config()


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


def test_the_outline_has_the_names_and_shapes_of_what_is_built(base: Path):
    stage = Lora(LoraRecipe(lora_ranks={"q_proj": 3, "mlp": 5}))
    outline, policy = stage.outline(CONFIG), stage.build_models(start_from(base)).policy
    built = {name: (p.shape, p.requires_grad) for name, p in policy.named_parameters()}
    assert {n: (p.shape, p.requires_grad) for n, p in outline.named_parameters()} == built
    assert all(parameter.is_meta for parameter in outline.parameters())

"""Several adapters over one model: any mixture active, and taken out again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_adapters import explicit_sum, named, random_adapter
from small_models import EXPERTS, logits_of, pack, random_documents, random_model, small_config
from torch import Tensor

from minimind.config.model import ModelConfig
from minimind.errors import CheckpointError, ConfigError
from minimind.lora.adapter import Adapter
from minimind.lora.folder import BaseModel
from minimind.lora.linear import LoraLinear
from minimind.lora.loaded import LoadedAdapters
from minimind.lora.peft_format import save_adapter
from minimind.model.state_dict import join_fused, save_hf_folder, split_fused
from minimind.model.transformer import Transformer

CONFIG = small_config()
ONE = random_adapter(CONFIG, seed=1)
OTHER = random_adapter(CONFIG, {"q_proj": 2, "k_proj": 4, "down_proj": 3}, seed=2)
BATCH = pack([random_documents([9, 14])])


def loaded(model: Transformer) -> LoadedAdapters:
    adapters = LoadedAdapters(model)
    adapters.add("one", ONE)
    adapters.add("other", OTHER)
    return adapters


def expected_logits(config: ModelConfig, *scaled: tuple[Adapter, float]) -> Tensor:
    model = random_model(config)
    summed = explicit_sum(split_fused(config, named(model)), *scaled)
    model.double().load_named(join_fused(config, summed, "here"))
    return logits_of(model, BATCH).float()


MIXTURES = [
    ({}, ()),
    ({"one": 1.0}, ((ONE, 1.0),)),
    ({"other": 0.5}, ((OTHER, 0.5),)),
    ({"one": 2.0, "other": -1.0}, ((ONE, 2.0), (OTHER, -1.0))),
]


@pytest.mark.parametrize("experts", EXPERTS)
def test_experts_take_mixtures_too(experts: dict[str, Any]):
    config = small_config(**experts)
    one, other = random_adapter(config, seed=1), random_adapter(config, {"up_proj": 2}, seed=2)
    model = random_model(config)
    bare = named(model)
    adapters = LoadedAdapters(model)
    adapters.add("one", one)
    adapters.add("other", other)
    adapters.activate({"one": 0.5, "other": -2.0})
    expected = expected_logits(config, (one, 0.5), (other, -2.0))
    torch.testing.assert_close(logits_of(model, BATCH), expected, rtol=1e-3, atol=1e-3)
    adapters.activate({})
    for name, weight in named(model).items():
        assert torch.equal(weight, bare[name]), name


def test_any_mixture_is_the_model_with_the_summed_weights():
    model = random_model(CONFIG)
    adapters, bare = loaded(model), named(model)
    for scales, scaled in [*MIXTURES, *reversed(MIXTURES)]:
        adapters.activate(scales)
        assert adapters.active == scales
        torch.testing.assert_close(
            logits_of(model, BATCH), expected_logits(CONFIG, *scaled), rtol=1e-4, atol=1e-4
        )
    assert named(model).keys() == bare.keys()
    assert not any(isinstance(module, LoraLinear) for module in model.modules())


def test_removing_one_leaves_the_other_active():
    model = random_model(CONFIG)
    adapters = loaded(model)
    adapters.activate({"one": 1.0, "other": 2.0})
    adapters.remove("one")
    assert adapters.names == ["other"]
    assert adapters.active == {"other": 2.0}
    torch.testing.assert_close(
        logits_of(model, BATCH), expected_logits(CONFIG, (OTHER, 2.0)), rtol=1e-4, atol=1e-4
    )


def test_a_name_must_be_free_to_load_and_loaded_to_use():
    adapters = loaded(random_model(CONFIG))
    with pytest.raises(ConfigError, match="named 'one' is loaded already"):
        adapters.add("one", OTHER)
    with pytest.raises(ConfigError, match="named 'none' is loaded; loaded: one, other"):
        adapters.activate({"none": 1.0})
    with pytest.raises(ConfigError, match="named 'none'"):
        adapters.remove("none")


def test_an_adapter_for_another_model_is_refused():
    adapters = LoadedAdapters(random_model(small_config(intermediate_size=64)))
    with pytest.raises(CheckpointError, match=r"gate_proj is for a matrix of \[48, 32\].*64, 32"):
        adapters.add("one", ONE)
    assert adapters.names == []


def test_an_adapter_trained_beside_other_weights_is_refused(tmp_path: Path):
    models = [random_model(CONFIG, seed) for seed in (0, 1)]
    for number, model in enumerate(models):
        save_hf_folder(tmp_path / str(number), CONFIG, named(model), torch.float32)
    bases = [BaseModel.of(tmp_path / str(number)) for number in (0, 1)]
    save_adapter(tmp_path / "adapter", CONFIG, ONE, bases[0])
    LoadedAdapters(models[0], bases[0].fingerprint).load("one", tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="beside other weights than this model's"):
        LoadedAdapters(models[1], bases[1].fingerprint).load("one", tmp_path / "adapter")

"""Optimizers of a DeepSpeed JSON: the parameters they get, and which Adam is chosen."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from resolved_json import Resolve

from minimind.config import deepspeed_optimizers
from minimind.errors import ConfigError


def test_optimizers_and_their_parameters_are_the_installed_ones(
    deepspeed_config: Callable[[dict[str, Any]], Any],
):
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam
    from deepspeed.runtime.config import ADAM_W_MODE, DEEPSPEED_OPTIMIZERS, TORCH_ADAM_PARAM

    assert set(DEEPSPEED_OPTIMIZERS) == deepspeed_optimizers.DEEPSPEED_OPTIMIZERS.keys()
    taken = {ADAM_W_MODE, TORCH_ADAM_PARAM}
    for kind in (torch.optim.AdamW, torch.optim.Adam, FusedAdam, DeepSpeedCPUAdam):
        taken |= inspect.signature(kind.__init__).parameters.keys()
    # What DeepSpeed fills in itself, and PyTorch's Adam in disguise of AdamW.
    filled = {"self", "params", "model_params", "adamw_mode", "decoupled_weight_decay"}
    assert taken - filled == deepspeed_optimizers.ADAM_PARAMS


@pytest.mark.parametrize(
    ("type", "kept"),
    [
        ("SGD", {"lr", "weight_decay"}),
        ("RMSprop", {"lr", "weight_decay"}),
        ("Lion", {"lr", "weight_decay"}),
        ("Muon", {"lr", "betas", "eps", "weight_decay"}),
        ("Adam", {"lr", "betas", "eps", "weight_decay", "torch_adam", "fused"}),
    ],
)
def test_another_type_of_optimizer_gets_the_parameters_it_takes(
    resolved: Resolve, type: str, kept: set[str]
):
    ds, _ = resolved(sets={"optimizer.type": type, "zero_optimization.stage": 1})
    assert ds["optimizer"]["params"].keys() == kept
    assert ds.get("zero_allow_untested_optimizer", False) == (type != "Adam")


def test_parameters_that_an_optimizer_does_not_take_are_named(resolved: Resolve):
    with pytest.raises(ConfigError, match=r"--set betas=.*the optimizer SGD has no betas.*takes"):
        resolved(sets={"optimizer.type": "SGD"}, betas=(0.9, 0.9))
    with pytest.raises(ConfigError, match=r"'betas': SGD takes dampening"):
        resolved(sets={"optimizer.type": "SGD", "optimizer.params.betas": [0.9, 0.9]})
    ds, _ = resolved(sets={"optimizer.type": "SGD", "optimizer.params.momentum": 0.9})
    assert ds["optimizer"]["params"]["momentum"] == 0.9
    ds, _ = resolved(sets={"optimizer.type": "Lion"}, betas=(0.9, 0.9))
    assert ds["optimizer"]["params"]["betas"] == [0.9, 0.9]
    for given, meant in (("sgd", "SGD"), ("Adamm", "adam")):
        with pytest.raises(ConfigError, match=rf"optimizer.type is '{given}' \(did you.*{meant}"):
            resolved(sets={"optimizer.type": given})


CHOSEN = {"torch_adam": True, "fused": True}


@pytest.mark.parametrize("type", ["Adam", "AdamW", "adamw"])
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, CHOSEN),
        ({"weight_decay": 0.1}, CHOSEN),
        ({"torch_adam": False}, {"torch_adam": False}),
        ({"torch_adam": True}, {"torch_adam": True}),
        ({"fused": False}, {"torch_adam": True, "fused": False}),
        ({"foreach": True}, {"torch_adam": True, "foreach": True}),
        ({"bias_correction": True}, {"bias_correction": True}),
    ],
)
def test_an_adam_is_pytorchs_unless_another_is_asked_for(
    resolved: Resolve, type: str, given: dict[str, Any], expected: dict[str, Any]
):
    ds, _ = resolved({"optimizer": {"type": type, "params": given}})
    others = {"lr", "betas", "eps", "weight_decay"}
    found = {k: v for k, v in ds["optimizer"]["params"].items() if k not in others}
    assert found == expected


def test_an_adam_whose_states_are_on_the_cpu_is_deepspeeds(resolved: Resolve):
    for device, expected in (("cpu", None), ("none", True)):
        zero = {"stage": 2, "offload_optimizer": {"device": device}}
        for section in ({"optimizer": {"type": "AdamW"}}, {}):
            ds, _ = resolved({"zero_optimization": zero, **section})
            assert ds["optimizer"]["params"].get("torch_adam") is expected


def test_auto_is_the_recipes_optimizer(resolved: Resolve):
    def chosen(optimizer: str = "Muon", **more: Any) -> str:
        ds, recipe = resolved({"optimizer": {"type": "auto"}, **more}, optimizer=optimizer)
        assert recipe.optimizer == ds["optimizer"]["type"]
        return ds["optimizer"]["type"]

    assert [chosen(), chosen("AdamW"), chosen("SGD")] == ["Muon", "AdamW", "SGD"]
    with pytest.raises(ConfigError, match=r"--set optimizer=Muun: .*did you mean muon"):
        chosen("Muun")
    offloaded = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    with pytest.raises(ConfigError, match=r"Muon with zero_optimization\.offload_optimizer"):
        chosen(zero_optimization=offloaded)
    ds, _ = resolved({"optimizer": {"type": "auto"}, "zero_optimization": offloaded})
    assert ds["optimizer"]["type"] == "AdamW", "nobody asked for another"
    with pytest.raises(ConfigError, match=r"optimizer=AdamW contradicts optimizer.type Lion"):
        resolved({"optimizer": {"type": "Lion"}}, optimizer="AdamW")
    with pytest.raises(ConfigError, match="knows no key 'muon_lr': Muon takes"):
        resolved({"optimizer": {"type": "Muon", "params": {"muon_lr": 0.1}}})

"""Mixtures of experts as Hugging Face folders: Qwen3-MoE where that is what they are, a type of our
own elsewhere. (Dense models: test_state_dict.py.)"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_folders import (
    IDS,
    edit_config,
    logits_in,
    transformers_logits,
    transformers_model,
)
from safetensors.torch import load_file
from small_adapters import named
from small_models import (
    EXPERTS,
    FAMILIES,
    gradients,
    logits_of,
    loss_of,
    pack,
    random_model,
    small_config,
)

from minimind.errors import CheckpointError
from minimind.model.hf_config import load_hf_config
from minimind.model.state_dict import join_fused, load_hf_folder, split_fused
from minimind.model.transformer import Transformer

Saved = Callable[..., tuple[Path, Transformer]]
QWEN3_MOE = [experts for experts in EXPERTS if not experts.get("n_shared_experts")]


@pytest.mark.parametrize("experts", EXPERTS, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_is_what_is_read(saved: Saved, family: str, experts: dict[str, Any]):
    folder, model = saved(family, **experts)
    config, weights = load_hf_folder(folder)
    assert config == model.config
    inside = named(model)
    assert weights.keys() == inside.keys()
    for name in inside:
        assert torch.equal(weights[name], inside[name]), name
    tensors = load_file(folder / "model.safetensors")
    assert sum(t.numel() for t in tensors.values()) == config.num_parameters


def test_names_and_shapes_are_those_of_the_specification():
    config = small_config(
        "llama",
        num_experts=3,
        moe_intermediate_size=20,
        n_shared_experts=2,
        mlp_only_layers=(1,),
    )
    outside = split_fused(config, named(random_model(config)))
    found = {name: list(tensor.shape) for name, tensor in outside.items() if "mlp" in name}
    one = {"gate_proj": [20, 32], "up_proj": [20, 32], "down_proj": [32, 20]}
    parts = [f"experts.{e}" for e in range(3)] + [f"shared_experts.{s}" for s in range(2)]
    layers = "model.layers."
    expected = {f"{layers}0.mlp.{p}.{x}.weight": shape for p in parts for x, shape in one.items()}
    expected[f"{layers}0.mlp.gate.weight"] = [3, 32]
    dense = {"gate_proj": [48, 32], "up_proj": [48, 32], "down_proj": [32, 48]}
    expected |= {f"{layers}1.mlp.{x}.weight": shape for x, shape in dense.items()}
    assert found == expected


def test_each_expert_is_the_part_it_should_be():
    config = small_config("llama", num_experts=3, moe_intermediate_size=20, n_shared_experts=2)
    inside = named(random_model(config))
    outside = split_fused(config, inside)
    mlp, name = "layers.1.mlp.", "model.layers.1.mlp."
    for e in range(3):
        halves = [outside[f"{name}experts.{e}.{half}_proj.weight"] for half in ("gate", "up")]
        assert torch.equal(torch.cat(halves), inside[mlp + "gate_up_proj"][e])
        down = outside[f"{name}experts.{e}.down_proj.weight"]
        assert torch.equal(down, inside[mlp + "down_proj"][e])
    for s in range(2):
        rows = slice(20 * s, 20 * (s + 1))
        gate_up = inside[mlp + "shared_experts.gate_up_proj.weight"]
        down = inside[mlp + "shared_experts.down_proj.weight"]
        shared = f"{name}shared_experts.{s}."
        assert torch.equal(outside[shared + "gate_proj.weight"], gate_up[:40][rows])
        assert torch.equal(outside[shared + "up_proj.weight"], gate_up[40:][rows])
        assert torch.equal(outside[shared + "down_proj.weight"], down[:, rows])


@pytest.mark.parametrize("experts", QWEN3_MOE, ids=str)
def test_transformers_computes_the_same_logits(saved: Saved, experts: dict[str, Any]):
    folder, model = saved(**experts)
    with torch.no_grad():
        expected = logits_of(model, pack([[IDS]]))
    torch.testing.assert_close(transformers_logits(folder), expected, atol=2e-5, rtol=1e-4)


def test_transformers_computes_the_same_gradients(saved: Saved):
    """Of the language model's loss, through every layer, by name on disk."""
    folder, model = saved(**EXPERTS[0], tie_word_embeddings=False)
    grads = gradients(model, loss_of(model, pack([[IDS]])))
    found = split_fused(model.config, grads)
    other = transformers_model(folder)
    ids = torch.tensor([IDS])
    (other(ids, labels=ids).loss * (len(IDS) - 1)).backward()
    for name, parameter in other.named_parameters():
        if "experts." not in name:
            gradient = found[name]
        else:  # transformers stacks them too
            gradient = grads[name.removeprefix("model.").replace("experts.", "")]
        error = (gradient - parameter.grad).norm()
        assert parameter.grad.norm() > 0, name
        assert error <= 5e-5 * parameter.grad.norm(), name


def test_a_folder_that_transformers_writes_again_keeps_everything(saved: Saved, tmp_path: Path):
    folder, model = saved(**EXPERTS[1], seq_aux=True)
    transformers_model(folder).save_pretrained(tmp_path / "again")
    config, weights = load_hf_folder(tmp_path / "again")
    assert config == model.config
    for name, tensor in named(model).items():
        assert torch.equal(weights[name], tensor), name


@pytest.mark.parametrize(
    ("fields", "dense"),
    [
        ({}, ()),
        ({"norm_topk_prob": True, "router_aux_loss_coef": 0.02}, ()),
        ({"mlp_only_layers": [1]}, (1,)),
        ({"decoder_sparse_step": 2}, (0, 2)),
        ({"decoder_sparse_step": 2, "mlp_only_layers": [3]}, (0, 2, 3)),
        ({"decoder_sparse_step": 3}, (0, 1, 3)),
    ],
    ids=str,
)
def test_what_transformers_writes_is_read(
    hf_saved: Callable[..., Path], fields: dict[str, Any], dense: tuple[int, ...]
):
    sizes = {"num_hidden_layers": 4, "head_dim": 8}
    sizes |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
    folder = hf_saved("Qwen3MoeConfig", **sizes, **fields)
    config = load_hf_config(folder)
    assert config.mlp_only_layers == dense
    assert config.norm_topk_prob == fields.get("norm_topk_prob", False)
    assert config.router_aux_loss_coef == fields.get("router_aux_loss_coef", 0.001)
    torch.testing.assert_close(logits_in(folder), transformers_logits(folder), atol=2e-5, rtol=1e-4)


def test_what_a_configuration_leaves_out_is_hugging_faces_default(saved: Saved):
    folder, _ = saved(**EXPERTS[0])
    left_out = ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob")
    left_out += ("router_aux_loss_coef", "mlp_only_layers", "decoder_sparse_step", "minimind")
    edit_config(folder, **dict.fromkeys(left_out))
    config = load_hf_config(folder)
    assert (config.num_experts, config.num_experts_per_tok) == (128, 8)
    assert (config.moe_intermediate_size, config.norm_topk_prob) == (768, False)
    assert (config.router_aux_loss_coef, config.mlp_only_layers) == (0.001, ())


@pytest.mark.parametrize(
    ("family", "experts"), [("llama", EXPERTS[0]), ("llama", EXPERTS[2]), ("qwen3", EXPERTS[2])]
)
def test_what_hugging_face_has_no_word_for_is_refused_there(
    saved: Saved, family: str, experts: dict[str, Any]
):
    """Rather than loaded as another model, with experts of random weights."""
    from transformers import AutoModelForCausalLM

    folder, _ = saved(family, **experts)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "minimind_moe"
    with pytest.raises(ValueError, match="minimind_moe"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_a_wrong_tensor_is_named():
    config = small_config("llama", **EXPERTS[2])
    whole = split_fused(config, named(random_model(config)))
    expert, shared = (
        f"model.layers.1.mlp.{part}.down_proj.weight" for part in ("experts.4", "shared_experts.1")
    )
    for name in (expert, shared):
        with pytest.raises(CheckpointError, match=rf"{name} is missing"):
            join_fused(config, {n: t for n, t in whole.items() if n != name}, "test")
        with pytest.raises(CheckpointError, match=rf"{name} is \[32, 47\].*\[32, 48\]"):
            join_fused(config, whole | {name: torch.ones(32, 47)}, "test")
    extra = expert.replace("experts.4", "experts.5")
    with pytest.raises(CheckpointError, match=r"not of this model: .*experts\.5"):
        join_fused(config, whole | {extra: torch.ones(32, 48)}, "test")

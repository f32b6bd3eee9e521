"""Adapters that PEFT writes: of stacked experts, the router, the embedding and the output head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_adapters import EXPERTS, adapted, named, random_adapter
from small_models import (
    FAMILIES,
    logits_of,
    loss_of,
    pack,
    random_documents,
    random_model,
    small_config,
)
from torch import Tensor

from minimind.config.model import ModelConfig
from minimind.errors import CheckpointError
from minimind.lora.folder import BaseModel, load_adapter, load_folder_config, load_model_folder
from minimind.lora.loaded import LoadedAdapters
from minimind.lora.model import collect_adapter
from minimind.lora.peft_format import save_adapter
from minimind.model.hf_config import load_hf_config
from minimind.model.state_dict import save_hf_folder
from minimind.model.transformer import Transformer

(IDS,) = random_documents([20])
SQUARE: dict[str, Any] = EXPERTS | {"moe_intermediate_size": 32}
TALL: dict[str, Any] = EXPERTS | {"moe_intermediate_size": 16}
"""Sizes whose stacks have a side in common: F = D, and 2F = D."""
STACKS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def adapted_by_peft(folder: Path, fields: dict[str, Any], **options: Any) -> Tensor:
    """Saves a base and an adapter that PEFT made for it; gives the logits PEFT computes."""
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    config = small_config(**fields)
    save_hf_folder(folder / "base", config, named(random_model(config)), torch.float32)
    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "base", dtype="float32")
    model = peft.get_peft_model(base, peft.LoraConfig(**options)).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
        logits = model(torch.tensor([IDS])).logits[0]
    model.save_pretrained(folder / "adapter")
    return logits


def own_logits(folder: Path) -> Tensor:
    config, weights = load_model_folder(folder)
    model = Transformer(config).eval()
    model.load_named(weights)
    with torch.no_grad():
        return logits_of(model, pack([[IDS]]))


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        (EXPERTS, {"target_modules": "all-linear"}),
        (EXPERTS, {"target_modules": [], "target_parameters": STACKS}),
        (SQUARE, {"target_modules": ["q_proj"], "target_parameters": STACKS, "use_rslora": True}),
        (TALL, {"target_modules": [], "target_parameters": STACKS[:1]}),
        (TALL, {"target_modules": [], "target_parameters": STACKS[1:]}),
        (
            EXPERTS,
            {
                "target_modules": ["v_proj"],
                "target_parameters": [*STACKS, "mlp.gate.weight"],
                "rank_pattern": {"mlp.experts.gate_up_proj": 5},
                "alpha_pattern": {"down_proj": 3, "gate.weight": 7},
            },
        ),
        ({}, {"target_modules": ["embed_tokens", "q_proj"]}),
        ({}, {"target_modules": ["lm_head"]}),
        ({"tie_word_embeddings": False}, {"target_modules": ["embed_tokens", "lm_head"]}),
    ],
    ids=str,
)
def test_what_peft_computes_is_computed(
    tmp_path: Path, fields: dict[str, Any], options: dict[str, Any]
):
    expected = adapted_by_peft(tmp_path, fields, r=2, lora_alpha=6, **options)
    found = own_logits(tmp_path / "adapter")
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    assert (found - own_logits(tmp_path / "base")).abs().max() > 0.1


def test_experts_get_adapters_of_their_own_with_one_a_for_gate_and_up(tmp_path: Path):
    adapted_by_peft(tmp_path, EXPERTS, r=2, target_modules=[], target_parameters=STACKS)
    adapter = load_adapter(tmp_path / "adapter", load_hf_config(tmp_path / "base"))
    assert len(adapter) == 2 * 3 * 3
    experts = "model.layers.1.mlp.experts."
    gate, up = (adapter[f"{experts}2.{x}_proj"] for x in ("gate", "up"))
    assert torch.equal(gate.a_RI, up.a_RI)
    assert not torch.equal(gate.b_OR, up.b_OR)
    file = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    stacked = file[f"base_model.model.{experts}base_layer.lora_A.weight"]
    assert torch.equal(gate.a_RI, stacked[4:6])
    assert torch.equal(adapter[f"{experts}0.gate_proj"].a_RI, stacked[:2])


def test_an_adapter_of_the_head_makes_two_matrices_of_one(tmp_path: Path):
    adapted_by_peft(tmp_path, {}, r=2, target_modules=["lm_head"])
    assert load_hf_config(tmp_path / "base").tie_word_embeddings
    config = load_folder_config(tmp_path / "adapter")
    assert not config.tie_word_embeddings
    _, weights = load_model_folder(tmp_path / "adapter")
    _, base = load_model_folder(tmp_path / "base")
    assert torch.equal(weights["embed_tokens.weight"], base["embed_tokens.weight"])
    assert not torch.equal(weights["lm_head.weight"], base["embed_tokens.weight"])
    with pytest.raises(CheckpointError, match="lm_head acts only merged"):
        LoadedAdapters(random_model(load_hf_config(tmp_path / "base"))).load(
            "a", tmp_path / "adapter"
        )


def test_another_embedding_beside_an_adapter_is_refused(tmp_path: Path):
    """PEFT saves the whole embedding where it was resized, or is adapted."""
    adapted_by_peft(tmp_path, {}, r=2, target_modules=["embed_tokens"])
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = "base_model.model.model.embed_tokens.base_layer.weight"
    assert name in tensors
    for changed in (tensors[name] + 1, torch.cat([tensors[name]] * 2)):
        save_file(tensors | {name: changed}, path)
        with pytest.raises(CheckpointError, match=r"embed_tokens\.weight.*merge the adapter"):
            load_model_folder(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4', which changed the base's"),
        ({"init_lora_weights": "gaussian"}, None),
        ({"trainable_token_indices": [3]}, "trainable_token_indices is not supported"),
        ({"ensure_weight_tying": True}, "ensure_weight_tying is not supported"),
    ],
    ids=str,
)
def test_what_more_than_a_and_b_is_needed_for_is_refused(
    tmp_path: Path, values: dict[str, Any], message: str | None
):
    adapted_by_peft(tmp_path, {}, r=2, target_modules=["q_proj"])
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    if message is None:
        own_logits(tmp_path / "adapter")
        return
    with pytest.raises(CheckpointError, match=message):
        load_model_folder(tmp_path / "adapter")


def test_stacked_experts_of_another_model_are_refused(tmp_path: Path):
    adapted_by_peft(tmp_path, EXPERTS, r=2, target_modules=[], target_parameters=STACKS)
    for other in ({}, EXPERTS | {"num_experts": 5}, EXPERTS | {"moe_intermediate_size": 24}):
        with pytest.raises(CheckpointError, match="fit no experts of this model"):
            load_adapter(tmp_path / "adapter", small_config(**other))


def save_base(family: str, folder: Path) -> tuple[ModelConfig, Transformer, Path]:
    """Saves a random model of the family as a base; gives its configuration, itself, its folder."""
    config, base = small_config(family), folder / "base"
    model = random_model(config)
    save_hf_folder(base, config, named(model), torch.float32)
    return config, model, base


def loaded_by_peft(base: Path, adapter: Path, **options: bool) -> Any:
    """Gives the model as PEFT loads it; skips the test where PEFT is not installed."""
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    return peft.PeftModel.from_pretrained(model, adapter, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_computes_what_we_do(family: str, tmp_path: Path):
    """Where PEFT is installed: it reads ours, and we read what it writes."""
    config, _, base = save_base(family, tmp_path)
    ids = random_documents([20])[0]
    save_adapter(tmp_path / "ours", config, random_adapter(config), BaseModel.of(base))

    def logits_of_folder(folder: Path) -> Tensor:
        merged = Transformer(config)
        merged.load_named(load_model_folder(folder)[1])
        return logits_of(merged, pack([[ids]]))

    theirs = loaded_by_peft(base, tmp_path / "ours")
    with torch.no_grad():
        found = theirs(torch.tensor([ids])).logits[0]
    ours = logits_of_folder(tmp_path / "ours")
    assert (ours - logits_of_folder(base)).abs().max() > 0.1
    torch.testing.assert_close(found, ours, rtol=1e-4, atol=1e-4)
    theirs.save_pretrained(tmp_path / "theirs")
    torch.testing.assert_close(logits_of_folder(tmp_path / "theirs"), ours, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_has_our_gradients(family: str, tmp_path: Path):
    config, model, base = save_base(family, tmp_path)
    ids = random_documents([20])[0]
    adapted(model)
    values = named(model)
    save_adapter(tmp_path / "ours", config, collect_adapter(model, values), BaseModel.of(base))
    batch = pack([[ids]])
    loss_of(model, batch).backward()
    ours = {n: values[n] if p.grad is None else p.grad for n, p in model.named_parameters()}

    theirs = loaded_by_peft(base, tmp_path / "ours", is_trainable=True)
    tokens = torch.tensor([ids])
    loss = theirs(tokens, labels=tokens).loss * (len(ids) - 1)
    loss.backward()
    wanted = {n: p.grad for n, p in theirs.named_parameters() if p.requires_grad}
    found = collect_adapter(model, ours)
    assert len(wanted) == 2 * len(found)
    for name, part in found.items():
        for tensor, gradient in (("A", part.a_RI), ("B", part.b_OR)):
            expected = wanted[f"base_model.model.{name}.lora_{tensor}.default.weight"]
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4, msg=name)

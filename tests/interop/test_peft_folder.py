"""minimind convert --to peft: what PEFT loads without a warning, and computes the same."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from small_adapters import EXPERTS, UNEQUAL, named, random_adapter
from small_models import logits_of, pack, random_documents, random_model, small_config
from torch import Tensor

from minimind.config.model import ModelConfig
from minimind.errors import ConfigError
from minimind.interop.conversion import convert
from minimind.interop.options import ConvertOptions
from minimind.lora.adapter import EMBEDDING, HEAD, LoraPart
from minimind.lora.folder import BaseModel, load_adapter, load_model_folder
from minimind.lora.peft_format import save_adapter
from minimind.model.state_dict import save_hf_folder
from minimind.model.transformer import Transformer

(IDS,) = random_documents([20])


def save_both(folder: Path, adapter: dict[str, LoraPart], config: ModelConfig) -> Path:
    """Saves a random base and the adapter; gives the adapter's folder."""
    save_hf_folder(folder / "base", config, named(random_model(config)), torch.float32)
    save_adapter(folder / "adapter", config, adapter, BaseModel.of(folder / "base"))
    return folder / "adapter"


def own_logits(folder: Path) -> Tensor:
    config, weights = load_model_folder(folder)
    model = Transformer(config).eval()
    model.load_named(weights)
    with torch.no_grad():
        return logits_of(model, pack([[IDS]]))


def peft_logits(base: Path, adapter: Path) -> Tensor:
    """Gives the logits that PEFT computes. It must have nothing to say about the adapter."""
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = peft.PeftModel.from_pretrained(model, adapter).eval()
    assert [w for w in said if "gradient_checkpointing" not in str(w.message)] == []
    with torch.no_grad():
        return found(torch.tensor([IDS])).logits[0]


def some_experts(config: ModelConfig) -> dict[str, LoraPart]:
    """Adapters of one expert's gate, another's down and the router, at unequal ranks and scales."""
    adapter = random_adapter(config, UNEQUAL | {"gate": 3})
    kept = ("0.mlp.experts.1.gate_proj", "1.mlp.experts.2.down_proj", "mlp.gate", "q_proj")
    adapter = {name: part for name, part in adapter.items() if name.endswith(kept)}
    name = "model.layers.0.mlp.experts.1.gate_proj"
    return adapter | {name: LoraPart(adapter[name].a_RI, adapter[name].b_OR, 1.0)}


@pytest.mark.parametrize(
    ("fields", "kinds"),
    [
        ({}, UNEQUAL),
        (EXPERTS, UNEQUAL | {"gate": 2}),
        (EXPERTS | {"mlp_only_layers": (0,)}, UNEQUAL),
        (EXPERTS, {"q_proj": 2}),
        (EXPERTS, {"down_proj": 2}),
        (EXPERTS, None),
    ],
    ids=str,
)
def test_peft_loads_it_without_a_warning_and_computes_the_same(
    tmp_path: Path, fields: dict[str, Any], kinds: dict[str, int] | None
):
    config = small_config(**fields)
    adapter = some_experts(config) if kinds is None else random_adapter(config, kinds)
    source = save_both(tmp_path, adapter, config)
    convert(source, "peft", tmp_path / "out", ConvertOptions())
    expected = own_logits(source)
    found = peft_logits(tmp_path / "base", tmp_path / "out")
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-4)
    assert (expected - own_logits(tmp_path / "base")).abs().max() > 0.05
    torch.testing.assert_close(own_logits(tmp_path / "out"), expected, atol=2e-5, rtol=1e-4)


def test_what_peft_wrote_comes_out_as_it_went_in(tmp_path: Path):
    """Also an A that gate and up share, and the dropout."""
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    config = small_config(**EXPERTS)
    save_hf_folder(tmp_path / "base", config, named(random_model(config)), torch.float32)
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype="float32")
    stacks = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    options = peft.LoraConfig(r=4, lora_alpha=8, target_modules=[], target_parameters=stacks)
    model = peft.get_peft_model(base, options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    model.save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", "peft", tmp_path / "ours", ConvertOptions())
    before, after = (load_adapter(tmp_path / x, config) for x in ("theirs", "ours"))
    assert before.keys() == after.keys()
    for name, part in before.items():
        assert torch.equal(part.a_RI, after[name].a_RI)
        assert torch.equal(part.b_OR, after[name].b_OR)
        assert part.alpha == after[name].alpha


def test_adapters_of_the_vocabulary(tmp_path: Path):
    config = small_config(tie_word_embeddings=False)
    adapter = random_adapter(config, {"q_proj": 2})
    for name in (EMBEDDING, HEAD):
        adapter[name] = LoraPart(0.2 * torch.randn(2, 32), 0.2 * torch.randn(97, 2), 4.0)
    source = save_both(tmp_path, adapter, config)
    convert(source, "peft", tmp_path / "out", ConvertOptions())
    found = peft_logits(tmp_path / "base", tmp_path / "out")
    torch.testing.assert_close(found, own_logits(source), atol=5e-5, rtol=1e-4)


def test_the_dropout_and_the_name_of_the_model_are_kept(tmp_path: Path):
    config = small_config()
    source = save_both(tmp_path, random_adapter(config), config)
    path = source / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_dropout": 0.1}))
    convert(source, "peft", tmp_path / "out", ConvertOptions())
    values = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert values["lora_dropout"] == 0.1
    assert values["base_model_name_or_path"] == str(tmp_path / "base")
    named_so = ConvertOptions(base_name="someone/minimind")
    converted = convert(source, "peft", tmp_path / "named", named_so)
    values = json.loads((tmp_path / "named" / "adapter_config.json").read_text())
    assert values["base_model_name_or_path"] == "someone/minimind"
    assert "someone/minimind" in " ".join(converted.notes)


def test_a_whole_model_is_no_adapter(tmp_path: Path):
    config = small_config()
    save_both(tmp_path, random_adapter(config), config)
    for to in ("peft", "lora_pth"):
        with pytest.raises(ConfigError, match="a whole model"):
            convert(tmp_path / "base", to, tmp_path / "out", ConvertOptions())
    assert not (tmp_path / "out").exists()

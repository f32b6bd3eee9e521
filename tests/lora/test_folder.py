"""Adapter folders: PEFT's format, and the whole models they stand for."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_adapters import explicit_sum, named, random_adapter
from small_models import (
    random_model,
    small_config,
)

from minimind.errors import CheckpointError
from minimind.lora.adapter import LoraPart
from minimind.lora.folder import (
    BaseModel,
    find_base,
    load_adapter,
    load_folder_config,
    load_model_folder,
)
from minimind.lora.peft_format import save_adapter
from minimind.model.state_dict import load_hf_folder, save_hf_folder, split_fused

CONFIG = small_config()
EVERY = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "base"
    save_hf_folder(folder, CONFIG, named(random_model(CONFIG)), torch.float32)
    return folder


@pytest.fixture
def folder(base: Path) -> Path:
    """An adapter's, beside the base's."""
    folder = base.parent / "tuned" / "adapter"
    save_adapter(folder, CONFIG, random_adapter(CONFIG), BaseModel.of(base))
    return folder


def edit(path: Path, **values: object) -> None:
    written = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(written | values), encoding="utf-8")


def test_files_are_as_peft_writes_them(base: Path, tmp_path: Path):
    """Names and keys from PEFT's documentation of its checkpoint format."""
    adapter = random_adapter(CONFIG, dict.fromkeys(EVERY, 4))
    adapter = {name: dataclasses.replace(part, alpha=8) for name, part in adapter.items()}
    save_adapter(tmp_path / "a", CONFIG, adapter, BaseModel.of(base))
    values = json.loads((tmp_path / "a" / "adapter_config.json").read_text(encoding="utf-8"))
    assert (values["peft_type"], values["task_type"]) == ("LORA", "CAUSAL_LM")
    assert (values["r"], values["lora_alpha"], values["bias"]) == (4, 8, "none")
    assert values["target_modules"] == sorted(EVERY)
    assert values["rank_pattern"] == values["alpha_pattern"] == {}
    assert values["base_model_name_or_path"] == str(base)
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    layer = "base_model.model.model.layers.1"
    shapes = {
        f"{layer}.self_attn.q_proj.lora_A.weight": [4, 32],
        f"{layer}.self_attn.q_proj.lora_B.weight": [48, 4],
        f"{layer}.self_attn.k_proj.lora_B.weight": [24, 4],
        f"{layer}.self_attn.v_proj.lora_B.weight": [24, 4],
        f"{layer}.self_attn.o_proj.lora_A.weight": [4, 48],
        f"{layer}.self_attn.o_proj.lora_B.weight": [32, 4],
        f"{layer}.mlp.gate_proj.lora_B.weight": [48, 4],
        f"{layer}.mlp.up_proj.lora_A.weight": [4, 32],
        f"{layer}.mlp.down_proj.lora_A.weight": [4, 48],
    }
    for name, shape in shapes.items():
        assert list(tensors[name].shape) == shape, name
        assert tensors[name].dtype == torch.float32
    assert len(tensors) == 2 * 2 * 7


def test_ranks_and_alphas_that_differ_go_into_patterns_of_whole_names(folder: Path):
    values = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert "k_proj" not in values["target_modules"]
    ranks = values["rank_pattern"]
    assert ranks["model.layers.1.self_attn.v_proj"] == 5
    found = {ranks.get(f"model.layers.0.{x}", values["r"]) for x in ("mlp.up_proj",)}
    assert found == {1}


def test_a_linear_left_out_in_one_layer_spells_out_the_others(base: Path, tmp_path: Path):
    adapter = random_adapter(CONFIG, {"q_proj": 2, "o_proj": 2})
    del adapter["model.layers.0.self_attn.q_proj"]
    save_adapter(tmp_path / "a", CONFIG, adapter, BaseModel.of(base))
    values = json.loads((tmp_path / "a" / "adapter_config.json").read_text(encoding="utf-8"))
    assert values["target_modules"] == ["model.layers.1.self_attn.q_proj", "o_proj"]


def test_an_adapter_is_read_as_it_was_written(folder: Path):
    written, read = random_adapter(CONFIG), load_adapter(folder, CONFIG)
    assert read.keys() == written.keys()
    for name, part in written.items():
        assert torch.equal(read[name].a_RI, part.a_RI)
        assert torch.equal(read[name].b_OR, part.b_OR)
        assert read[name].alpha == part.alpha


def test_the_model_meant_is_base_plus_adapter_in_fp32(base: Path, folder: Path):
    config, weights = load_model_folder(folder)
    assert config == CONFIG
    _, before = load_hf_folder(base)
    expected = explicit_sum(split_fused(CONFIG, before), (random_adapter(CONFIG), 1.0))
    for name, weight in split_fused(CONFIG, weights).items():
        assert weight.dtype == torch.float32
        torch.testing.assert_close(weight.double(), expected[name], rtol=1e-6, atol=1e-6)
    assert load_model_folder(base)[1].keys() == before.keys()


def test_the_configuration_is_the_adapters_own(base: Path):
    """It may have been trained at another RoPE than its base."""
    longer = dataclasses.replace(CONFIG, rope_theta=5e6)
    save_adapter(base.parent / "a", longer, random_adapter(CONFIG), BaseModel.of(base))
    assert load_folder_config(base.parent / "a").rope_theta == 5e6
    (base.parent / "a" / "config.json").unlink()  # as PEFT leaves it
    assert load_folder_config(base.parent / "a") == CONFIG


def test_an_adapter_may_be_the_base_of_another(folder: Path):
    second = folder.parent.parent / "again"
    save_adapter(second, CONFIG, random_adapter(CONFIG, seed=5), BaseModel.of(folder))
    _, first = load_model_folder(folder)
    expected = explicit_sum(split_fused(CONFIG, first), (random_adapter(CONFIG, seed=5), 1.0))
    for name, weight in split_fused(CONFIG, load_model_folder(second)[1]).items():
        torch.testing.assert_close(weight.double(), expected[name], rtol=1e-6, atol=1e-6)
    assert find_base(second).fingerprint != find_base(folder).fingerprint


def test_base_and_adapter_move_together(folder: Path, tmp_path: Path):
    before = load_model_folder(folder)[1]
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    moved = tmp_path / "elsewhere" / "tuned" / "adapter"
    assert find_base(moved).folder == (tmp_path / "elsewhere" / "base").resolve()
    after = load_model_folder(moved)[1]
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_an_adapter_alone_moves_too(folder: Path, base: Path, tmp_path: Path):
    moved = tmp_path / "far" / "away" / "adapter"
    moved.parent.mkdir(parents=True)
    folder.rename(moved)
    assert find_base(moved).folder == base


@pytest.mark.faults("an adapter's base is gone", "named")
def test_a_base_that_is_gone_is_named(folder: Path, base: Path):
    shutil.rmtree(base)
    with pytest.raises(CheckpointError, match=rf"not found: {base} is no model folder.*Put that"):
        load_model_folder(folder)


@pytest.mark.faults("an adapter's base has changed", "refused")
def test_a_base_that_changed_is_refused(folder: Path, base: Path):
    save_hf_folder(base, CONFIG, named(random_model(CONFIG, seed=1)), torch.float32)
    with pytest.raises(CheckpointError, match="holds other weights than it was trained beside"):
        load_model_folder(folder)


def test_peft_adapters_without_our_header_are_read(folder: Path, base: Path):
    """As PEFT itself would have written this one: no fingerprint, alpha/sqrt(r), patterns that
    end in a name, bf16."""
    tensors = load_file(folder / "adapter_model.safetensors")
    half = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    save_file(half, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    edit(
        folder / "adapter_config.json",
        use_rslora=True,
        lora_alpha=6,
        alpha_pattern={"v_proj": 10, r"layers\.1\.mlp\.up_proj": 3},
    )
    (folder / "config.json").unlink()
    adapter = load_adapter(folder, CONFIG)
    scales = {name: part.alpha / part.rank for name, part in adapter.items()}
    assert scales["model.layers.0.self_attn.v_proj"] == pytest.approx(10 / math.sqrt(5))
    assert scales["model.layers.1.mlp.up_proj"] == pytest.approx(3)
    assert scales["model.layers.0.mlp.up_proj"] == pytest.approx(6)
    assert load_model_folder(folder)[0] == CONFIG


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"use_dora": True}, "use_dora is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is not supported"),
    ],
)
@pytest.mark.faults("an adapter with what we do not compute", "refused")
def test_what_is_more_than_pairs_of_a_and_b_is_refused(
    folder: Path, values: dict[str, object], message: str
):
    edit(folder / "adapter_config.json", **values)
    with pytest.raises(CheckpointError, match=message):
        load_adapter(folder, CONFIG)


@pytest.mark.faults("damaged adapters", "refused")
def test_damaged_folders_are_refused(folder: Path):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"
    save_file({k: v for k, v in tensors.items() if k != name}, path, metadata=header)
    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.up_proj are no pair"):
        load_adapter(folder, CONFIG)
    save_file(tensors | {"extra": torch.ones(1)}, path, metadata=header)
    with pytest.raises(CheckpointError, match="extra: pairs of"):
        load_adapter(folder, CONFIG)
    path.write_bytes(b"cut off")
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_adapter(folder, CONFIG)
    (folder / "adapter_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="not the configuration of an adapter"):
        load_adapter(folder, CONFIG)


def test_a_part_of_no_linear_of_the_model_is_refused(base: Path, tmp_path: Path):
    adapter = {"model.layers.7.mlp.up_proj": LoraPart(torch.ones(2, 32), torch.ones(48, 2), 2)}
    save_adapter(tmp_path / "a", CONFIG, adapter, BaseModel.of(base))
    with pytest.raises(CheckpointError, match=r"layers\.7\.mlp\.up_proj, which this model"):
        load_model_folder(tmp_path / "a")

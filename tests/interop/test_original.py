"""The original's `.pth` files, of every generation: in, out and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from original_models import (
    DENSE,
    MIXED,
    Plain,
    plain_logits,
    random_lora,
    random_state,
    square_linears,
)
from source_logits import IDS, check_logits

from minimind.errors import CheckpointError, ConfigError
from minimind.interop.conversion import convert
from minimind.interop.options import ConvertOptions
from minimind.interop.readers import open_source
from minimind.lora.folder import find_model_folder
from minimind.model.state_dict import load_hf_folder
from minimind.runtime.devices import DTYPES
from minimind.samples.text import load_sample_tokenizer

EVERY = [*DENSE, *MIXED, Plain("3", untied=True, kv_heads=4)]


def save(folder: Path, state: Any, name: str = "full_sft_32.pth") -> Path:
    torch.save(state, folder / name)
    return folder / name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("plain", EVERY, ids=str)
def test_every_generation_computes_what_it_did(tmp_path: Path, plain: Plain, dtype: torch.dtype):
    state = random_state(plain, dtype)
    source = open_source(save(tmp_path, state))
    assert source.dtype == dtype
    check_logits(source, plain, state)
    config = source.config
    assert (config.num_attention_heads, config.num_key_value_heads) == (8, plain.kv_heads)
    assert (config.head_dim, config.num_hidden_layers) == (plain.size, 2)
    assert (config.num_experts, config.n_shared_experts) == (plain.experts, plain.shared)
    assert config.norm_cast_before_weight == (not plain.is_3)
    assert config.tie_word_embeddings == (not plain.untied)
    coefficient = {"2504": 0.1, "2601": 0.01, "3": 5e-4}[plain.generation]
    assert config.router_aux_loss_coef == (coefficient if plain.experts else 5e-4)
    said = " ".join(source.notes)
    assert f"generation {plain.generation}" in said
    assert "rope_theta 1000000.0" in said
    assert "--tokenizer" in said


@pytest.mark.parametrize("plain", EVERY, ids=str)
def test_in_and_out_and_in_again_changes_no_bit(tmp_path: Path, plain: Plain):
    state = random_state(plain, torch.float16)
    file = save(tmp_path, state)
    convert(file, "minimind", tmp_path / "folder", ConvertOptions())
    options = ConvertOptions(generation="2504" if plain.generation == "2504" else None)
    converted = convert(tmp_path / "folder", "pth", tmp_path / "out.pth", options)
    assert [difference.largest for difference in converted.differences] == [0, 0]
    again = torch.load(tmp_path / "out.pth", weights_only=True)
    assert again.keys() == state.keys()
    for name, tensor in state.items():
        assert again[name].dtype == torch.float16
        assert torch.equal(again[name], tensor), name


@pytest.mark.parametrize("plain", [*DENSE, MIXED[0]], ids=str)
def test_adapters_come_in_over_their_model_and_go_out_again(tmp_path: Path, plain: Plain):
    rank = {"2504": 16, "2601": 8, "3": 16}[plain.generation]
    plain = Plain(**(vars(plain) | {"size": 4}))
    state, lora = random_state(plain), random_lora(plain, rank)
    assert square_linears(plain)
    base, file = save(tmp_path, state), save(tmp_path, lora, "lora_identity_32.pth")
    source = open_source(file, ConvertOptions(base=base))
    check_logits(source, plain, state | lora, atol=2e-5)
    adapted, bare = (plain_logits(plain, each, IDS) for each in (state | lora, state))
    assert (adapted - bare).abs().max() > 0.1
    options = ConvertOptions(base=base, generation=plain.generation)
    convert(file, "lora_pth", tmp_path / "again.pth", options)
    again = torch.load(tmp_path / "again.pth", weights_only=True)
    assert again.keys() == lora.keys()
    for name, tensor in lora.items():
        assert torch.equal(again[name], tensor), name
    with pytest.raises(ConfigError, match="give the model it was trained on with --base"):
        open_source(file)
    with pytest.raises(ConfigError, match="--base is for adapters alone"):
        open_source(base, ConvertOptions(base=base))


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_adapters_and_merged_models_in_other_types(tmp_path: Path, dtype: str):
    """The base is in fp16, and what the adapter changes in fp32."""
    base = save(tmp_path, random_state(DENSE[1], torch.float16))
    file = save(tmp_path, random_lora(DENSE[1], 8), "lora_identity_32.pth")
    options = ConvertOptions(base=base, dtype=dtype)
    convert(file, "pth", tmp_path / "merged.pth", options)
    convert(file, "lora_pth", tmp_path / "lora.pth", options)
    for name in ("merged", "lora"):
        written = torch.load(tmp_path / f"{name}.pth", weights_only=True)
        assert {tensor.dtype for tensor in written.values()} == {DTYPES[dtype]}
    convert(file, "pth", tmp_path / "kept.pth", ConvertOptions(base=base))
    kept = torch.load(tmp_path / "kept.pth", weights_only=True)
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}


def test_an_adapter_of_the_original_becomes_one_of_ours(tmp_path: Path):
    plain = DENSE[0]
    state, lora = random_state(plain), random_lora(plain, 16)
    convert(save(tmp_path, state), "minimind", tmp_path / "base", ConvertOptions())
    file = save(tmp_path, lora, "lora_identity_32.pth")
    convert(file, "peft", tmp_path / "adapter", ConvertOptions(base=tmp_path / "base"))
    check_logits(open_source(tmp_path / "adapter"), plain, state | lora, atol=2e-5)


def test_adapters_beside_the_weights_are_merged(tmp_path: Path):
    """As in the state of a LoRA training run."""
    plain = DENSE[2]
    plain = Plain(**(vars(plain) | {"size": 4}))
    both = random_state(plain) | random_lora(plain, 16)
    state = {f"module.{name}": tensor for name, tensor in both.items()}
    optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-4}]}
    source = open_source(save(tmp_path, {"model": state, "optimizer": optimizer, "step": 5}))
    check_logits(source, plain, both, atol=2e-5)
    assert "its optimizer was left" in " ".join(source.notes)


def test_buffers_and_wrappers_are_left_out(tmp_path: Path):
    plain = DENSE[0]
    state = {f"module._orig_mod.{name}": tensor for name, tensor in random_state(plain).items()}
    state["module._orig_mod.pos_cis"] = torch.ones(4, 2, dtype=torch.complex64)
    state["module._orig_mod.layers.0.attention.mask"] = torch.full((1, 1, 4, 4), -torch.inf)
    check_logits(open_source(save(tmp_path, state)), plain, random_state(plain))


def test_what_a_file_does_not_say_can_be_set(tmp_path: Path):
    plain = Plain("2601", heads=4, kv_heads=2, size=8)
    state = random_state(plain)
    file = save(tmp_path, state)
    with pytest.raises(CheckpointError, match=r"heads is unsure.*32 rows.*16.*--set num_attention"):
        open_source(file)
    with pytest.raises(ConfigError, match=r"num_attention_heads is 5, which does not divide"):
        open_source(file, ConvertOptions(settings={"num_attention_heads": 5}))
    settings = {"num_attention_heads": 4, "rope_theta": 1e4, "max_position_embeddings": 512}
    source = open_source(file, ConvertOptions(settings=settings))
    check_logits(source, plain, state, theta=1e4)
    assert source.config.max_position_embeddings == 512
    assert "rope_theta" not in " ".join(source.notes)
    with pytest.raises(ConfigError, match="no such model field: rope_thetas"):
        open_source(file, ConvertOptions(settings=settings | {"rope_thetas": 1}))


def test_two_matrices_where_the_generation_has_one_are_refused(tmp_path: Path):
    plain = Plain("2601", untied=True)
    state = random_state(plain)
    file = save(tmp_path, state)
    with pytest.raises(CheckpointError, match=r"differs from the embedding.*tie_word_embeddings"):
        open_source(file)
    source = open_source(file, ConvertOptions(settings={"tie_word_embeddings": False}))
    check_logits(source, plain, state)


def test_the_tokenizer_beside_the_weights_or_in_the_checkout_is_found(tmp_path: Path):
    tokenizer = load_sample_tokenizer()
    plain = Plain("3", kv_heads=4, vocab=tokenizer.vocab_size)
    (tmp_path / "out").mkdir()
    file = save(tmp_path / "out", random_state(plain))
    for folder in (tmp_path / "model" / "minimind_tokenizer", tmp_path / "model", file.parent):
        tokenizer.save(folder)
        source = open_source(file)
        assert source.tokenizer == folder
        assert f"its tokenizer was found in {folder}" in source.notes
    assert open_source(file.parent).tokenizer == file.parent
    convert(file, "minimind", tmp_path / "folder", ConvertOptions())
    assert (tmp_path / "folder" / "tokenizer.json").exists()
    config, _ = load_hf_folder(tmp_path / "folder")
    assert config.vocab_size == tokenizer.vocab_size
    save(file.parent, {}, "other.pth")
    with pytest.raises(CheckpointError, match=r"several models \(full_sft_32.pth, other.pth\)"):
        open_source(file.parent)


def test_where_a_folder_is_expected_the_error_names_the_command(tmp_path: Path):
    file = save(tmp_path, random_state(DENSE[1]))
    outputs = {file: file.with_suffix(""), tmp_path: f"{tmp_path}-converted"}
    for path, output in outputs.items():
        with pytest.raises(CheckpointError) as caught:
            find_model_folder(path)
        command = f"minimind convert --input {path} --to minimind --output {output}"
        assert command in str(caught.value)

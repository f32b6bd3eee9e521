"""The original's folders with code of their own (`trust_remote_code`), of every generation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from original_models import DENSE, MIXED, Plain, random_state
from safetensors.torch import save_file
from source_logits import check_logits
from torch import Tensor

from minimind.errors import CheckpointError, ConfigError
from minimind.inference.load import load_model
from minimind.interop.options import ConvertOptions
from minimind.interop.readers import open_source


def config_of(plain: Plain) -> dict[str, Any]:
    """Gives the fields that the generation's code writes into config.json."""
    values: dict[str, Any] = {"model_type": "minimind", "vocab_size": plain.vocab, "dropout": 0.1}
    values |= {"rope_theta": 5e5, "use_moe": bool(plain.experts), "flash_attn": True}
    experts = {"num_experts_per_tok": 1 if plain.is_3 else 2, "norm_topk_prob": True}
    if not plain.is_3:
        experts |= {"n_routed_experts": plain.experts or 4, "n_shared_experts": plain.shared}
        experts |= {"aux_loss_alpha": 0.07, "seq_aux": False, "scoring_func": "softmax"}
    if plain.generation == "2504":
        values |= {"dim": plain.hidden, "n_layers": plain.layers, "n_heads": plain.heads}
        values |= {"n_kv_heads": plain.kv_heads, "hidden_dim": plain.ffn, "max_seq_len": 1024}
        values |= {"norm_eps": 1e-5, "multiple_of": 64}
        experts["n_shared_experts"] = True
        return values | experts
    values |= {"hidden_size": plain.hidden, "num_hidden_layers": plain.layers}
    values |= {"num_attention_heads": plain.heads, "num_key_value_heads": plain.kv_heads}
    values |= {"intermediate_size": plain.ffn, "max_position_embeddings": 1024}
    values |= {"rms_norm_eps": 1e-6 if plain.is_3 else 1e-5, "hidden_act": "silu"}
    values |= {"inference_rope_scaling": False, "rope_scaling": None}
    if plain.is_3:
        values |= {"head_dim": plain.size, "tie_word_embeddings": True}
        experts |= {"num_experts": plain.experts or 4, "moe_intermediate_size": plain.ffn}
        experts["router_aux_loss_coef"] = 0.07
    return values | experts


def save(folder: Path, plain: Plain, form: str = "bin", **changes: Any) -> dict[str, Tensor]:
    state = random_state(plain)
    (folder / "config.json").write_text(json.dumps(config_of(plain) | changes))
    if form == "bin":
        torch.save(state, folder / "pytorch_model.bin")
        return state
    tensors = {name: tensor.clone() for name, tensor in state.items()}
    # safetensors holds no tensor twice: transformers leaves one of the two out.
    del tensors[f"{plain.words.embedding if plain.is_3 else plain.words.head}.weight"]
    if form == "safetensors":
        save_file(tensors, folder / "model.safetensors")
        return state
    index = {}
    for i, name in enumerate(sorted(tensors)):
        file = f"model-{i % 2 + 1:05}-of-00002.safetensors"
        index[name] = file
    for file in set(index.values()):
        save_file({n: t for n, t in tensors.items() if index[n] == file}, folder / file)
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": index}))
    return state


@pytest.mark.parametrize("form", ["bin", "safetensors", "shards"])
@pytest.mark.parametrize("plain", [*DENSE, *MIXED], ids=str)
def test_a_folder_computes_what_it_did(tmp_path: Path, plain: Plain, form: str):
    state = save(tmp_path, plain, form)
    source = open_source(tmp_path)
    check_logits(source, plain, state, theta=5e5)
    config = source.config
    assert (config.dropout, config.max_position_embeddings) == (0.1, 1024)
    if plain.experts:
        assert config.router_aux_loss_coef == 0.07
        assert not config.seq_aux
    assert "rope_theta" not in " ".join(source.notes)


def test_other_numbers_of_heads_are_read_from_the_configuration(tmp_path: Path):
    plain = Plain("2601", heads=4, kv_heads=2, size=8)
    state = save(tmp_path, plain)
    check_logits(open_source(tmp_path), plain, state, theta=5e5)


def test_its_longer_contexts_are_yarn(tmp_path: Path):
    save(tmp_path, DENSE[2], inference_rope_scaling=True, max_position_embeddings=32768)
    scaling = open_source(tmp_path).config.rope_scaling
    assert scaling is not None
    assert (scaling["rope_type"], scaling["factor"]) == ("yarn", 16.0)
    save(tmp_path, DENSE[2], inference_rope_scaling=True)  # the original needs more than 2048
    assert open_source(tmp_path).config.rope_scaling is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": 40}, ["[61, 32]", "[61, 40]"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "'gelu'"]),
        ({"num_hidden_layers": 3}, ["model.layers.2", "missing"]),
        ({"num_hidden_layers": 1}, ["not of this model", "model.layers.1"]),
        ({"vocab_size": "61"}, ["vocab_size", "'61'"]),
    ],
    ids=str,
)
def test_a_configuration_that_contradicts_its_tensors_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: list[str]
):
    save(tmp_path, DENSE[1], **changes)
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        open_source(tmp_path)
    for word in (str(tmp_path), *words):
        assert word in str(caught.value)


def test_weights_and_their_index_must_be_there(tmp_path: Path):
    save(tmp_path, DENSE[1], "shards")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text("[]")
    with pytest.raises(CheckpointError, match="not an index of weights"):
        open_source(tmp_path)
    index.unlink()
    with pytest.raises(CheckpointError, match=r"none of model\.safetensors, .*pytorch_model\.bin,"):
        open_source(tmp_path)


def test_where_a_model_is_expected_the_error_names_the_command(tmp_path: Path):
    save(tmp_path, DENSE[1])
    with pytest.raises(CheckpointError, match=rf"minimind convert --input {tmp_path} --to minimi"):
        load_model(tmp_path)


def test_settings_count_before_the_configuration(tmp_path: Path):
    save(tmp_path, MIXED[1])
    source = open_source(tmp_path, ConvertOptions(settings={"router_aux_loss_coef": 0.2}))
    assert source.config.router_aux_loss_coef == 0.2

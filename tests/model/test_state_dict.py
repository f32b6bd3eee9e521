"""Tensor names and Hugging Face folders: written for `transformers`, read from it, refused where
something is wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import (
    FAMILIES,
    logits_of,
    pack,
    random_documents,
    random_model,
    small_config,
)
from torch import Tensor

from minimind.config.model import ModelConfig
from minimind.errors import CheckpointError
from minimind.model.state_dict import (
    join_fused,
    load_hf_config,
    load_hf_folder,
    save_hf_folder,
    split_fused,
)
from minimind.model.transformer import Transformer

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "untied": {"tie_word_embeddings": False},
    "yarn": {
        "rope_theta": 1e4,
        "rope_scaling": {"rope_type": "yarn", "original_max_position_embeddings": 16},
    },
    "one key head": {"num_key_value_heads": 1},
    "all heads": {"num_key_value_heads": 4, "head_dim": 8},
}
(IDS,) = random_documents([40])


def named(model: Transformer) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


def logits_in(folder: Path) -> Tensor:
    """Of the model that this project reads there."""
    config, weights = load_hf_folder(folder)
    model = Transformer(config)
    model.load_named(weights)
    with torch.no_grad():
        return logits_of(model.eval(), pack([[IDS]]))


def transformers_logits(folder: Path) -> Tensor:
    """Of the model that `transformers` reads there; every tensor must find its place."""
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    with torch.no_grad():
        return model.eval()(torch.tensor([IDS])).logits[0]


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., tuple[Path, Transformer]]:
    """saved(family, **changes) -> a folder, and the model that was written there."""

    def make(family: str = "qwen3", **changes: Any) -> tuple[Path, Transformer]:
        model = random_model(small_config(family, **changes)).eval()
        folder = tmp_path / "model"
        save_hf_folder(folder, model.config, named(model), torch.float32)
        return folder, model

    return make


@pytest.fixture
def hf_saved(tmp_path: Path) -> Callable[..., Path]:
    """hf_saved("LlamaConfig", shards=False, **fields) -> a folder that `transformers` wrote."""

    def make(kind: str, shards: bool = False, **fields: Any) -> Path:
        import transformers

        sizes = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "bos_token_id": 1}
        sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
        torch.manual_seed(1)
        model = transformers.AutoModelForCausalLM.from_config(
            getattr(transformers, kind)(**(sizes | fields))
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        options = {"max_shard_size": "20KB"} if shards else {}
        folder = tmp_path / "from_transformers"
        model.save_pretrained(folder, **options)
        assert len(list(folder.glob("*.safetensors"))) > 1 or not shards
        return folder

    return make


def edit_config(folder: Path, **changes: Any) -> None:
    """A change to None takes the field away."""
    path = folder / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_fused_tensors_split_and_join_bitwise(family: str, shape: str):
    config = small_config(family, **SHAPES[shape])
    inside = named(random_model(config))
    outside = split_fused(config, inside)
    again = join_fused(config, outside, "test")
    assert again.keys() == inside.keys()
    for name in inside:
        assert torch.equal(again[name], inside[name]), name
    assert sum(t.numel() for t in outside.values()) == config.num_parameters


@pytest.mark.parametrize("family", FAMILIES)
def test_names_and_shapes_are_those_of_the_specification(family: str):
    config = small_config(family, tie_word_embeddings=False, num_hidden_layers=1)
    norm = {"self_attn.q_norm": [12], "self_attn.k_norm": [12]} if family == "qwen3" else {}
    layer = {
        "self_attn.q_proj": [48, 32],
        "self_attn.k_proj": [24, 32],
        "self_attn.v_proj": [24, 32],
        "self_attn.o_proj": [32, 48],
        **norm,
        "input_layernorm": [32],
        "post_attention_layernorm": [32],
        "mlp.gate_proj": [48, 32],
        "mlp.up_proj": [48, 32],
        "mlp.down_proj": [32, 48],
    }
    expected = {f"model.layers.0.{name}.weight": shape for name, shape in layer.items()}
    expected |= {"model.embed_tokens.weight": [97, 32], "lm_head.weight": [97, 32]}
    expected |= {"model.norm.weight": [32]}
    outside = split_fused(config, named(random_model(config)))
    assert {name: list(tensor.shape) for name, tensor in outside.items()} == expected


def test_each_part_is_the_rows_it_should_be():
    config = small_config(num_hidden_layers=1)
    model = random_model(config)
    outside = split_fused(config, named(model))
    x = torch.randn(3, 32)
    fused = x @ named(model)["layers.0.self_attn.qkv_proj.weight"].T
    for name, columns in (("q", slice(0, 48)), ("k", slice(48, 72)), ("v", slice(72, 96))):
        weight = outside[f"model.layers.0.self_attn.{name}_proj.weight"]
        torch.testing.assert_close(x @ weight.T, fused[:, columns])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_written_is_what_is_read(tmp_path: Path, dtype: torch.dtype):
    config = small_config(dropout=0.1, rope_scaling="yarn", norm_cast_before_weight=False)
    inside = named(random_model(config))
    save_hf_folder(tmp_path / "a" / "b", config, inside, dtype)
    read, weights = load_hf_folder(tmp_path / "a" / "b")
    assert read == config
    assert weights.keys() == inside.keys()
    for name in inside:
        assert torch.equal(weights[name], inside[name].to(dtype)), name
    values = json.loads((tmp_path / "a" / "b" / "config.json").read_text())
    assert values["dtype"] == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_computes_the_same_logits(
    saved: Callable[..., tuple[Path, Transformer]], family: str, shape: str
):
    folder, model = saved(family, **SHAPES[shape])
    with torch.no_grad():
        expected = logits_of(model, pack([[IDS]]))
    torch.testing.assert_close(transformers_logits(folder), expected, atol=2e-5, rtol=1e-4)
    assert torch.equal(logits_in(folder), expected)


def test_a_folder_is_readable_by_whom_other_files_are(tmp_path: Path):
    config = small_config()
    save_hf_folder(tmp_path, config, named(random_model(config)), torch.float32)
    modes = {path.name: path.stat().st_mode for path in tmp_path.iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]


@pytest.mark.parametrize(
    "scaling",
    [
        "yarn",
        {"rope_type": "linear", "factor": 2.5},
        {
            "rope_type": "llama3",
            "factor": 2.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 3.0,
            "original_max_position_embeddings": 64,
        },
    ],
    ids=str,
)
def test_a_folder_that_transformers_writes_again_keeps_everything(
    saved: Callable[..., tuple[Path, Transformer]], tmp_path: Path, scaling: Any
):
    from transformers import AutoModelForCausalLM

    folder, model = saved(rope_scaling=scaling, dropout=0.2, norm_cast_before_weight=False)
    again = tmp_path / "again"
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(again)
    config, weights = load_hf_folder(again)
    assert config == model.config
    for name, tensor in named(model).items():
        assert torch.equal(weights[name], tensor)


LLAMA_YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}
LINEAR = {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 100.0,
}


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("LlamaConfig", {}),
        ("LlamaConfig", {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
        ("LlamaConfig", {"head_dim": 12, "rope_parameters": {"rope_theta": 5e5}}),
        ("LlamaConfig", {"rope_parameters": LLAMA_YARN, "max_position_embeddings": 64}),
        ("LlamaConfig", {"rope_parameters": LINEAR}),
        ("LlamaConfig", {"head_dim": 16, "rope_parameters": LLAMA3}),
        ("Qwen3Config", {"head_dim": 16, "rope_parameters": LLAMA3}),
        ("LlamaConfig", {"eos_token_id": [2, 3], "pad_token_id": None}),
        ("Qwen3Config", {"head_dim": 8}),
        ("Qwen3Config", {"head_dim": 8, "tie_word_embeddings": True}),
        (
            "Qwen3Config",
            {
                "head_dim": 8,
                "rope_parameters": {
                    **LLAMA_YARN,
                    "original_max_position_embeddings": 16,
                    "beta_fast": 8.0,
                    "beta_slow": 2.0,
                    "attention_factor": 0.9,
                },
            },
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("shards", [False, True], ids=["one file", "shards"])
def test_what_transformers_writes_is_read(
    hf_saved: Callable[..., Path], kind: str, fields: dict[str, Any], shards: bool
):
    folder = hf_saved(kind, shards, **fields)
    torch.testing.assert_close(logits_in(folder), transformers_logits(folder), atol=2e-5, rtol=1e-4)
    assert load_hf_config(folder).norm_cast_before_weight


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        {"type": "yarn", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "attention_factor": None, "truncate": True},
        {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 20},
        {"type": "linear", "factor": 2.0},
        {k: v for k, v in LLAMA3.items() if k != "rope_theta"},
        {"rope_type": "default"},
    ],
    ids=str,
)
def test_the_older_spelling_of_a_configuration_is_read(
    hf_saved: Callable[..., Path], scaling: dict[str, Any] | None
):
    folder = hf_saved("LlamaConfig", max_position_embeddings=64)
    edit_config(
        folder,
        rope_parameters=None,
        dtype=None,
        torch_dtype="float32",
        rope_theta=3e4,
        rope_scaling=scaling,
    )
    assert load_hf_config(folder).rope_theta == 3e4
    torch.testing.assert_close(logits_in(folder), transformers_logits(folder), atol=2e-5, rtol=1e-4)


def test_what_an_old_configuration_leaves_out_is_hugging_faces_default(
    hf_saved: Callable[..., Path],
):
    folder = hf_saved("LlamaConfig", num_key_value_heads=4)
    left_out = ("rope_parameters", "num_key_value_heads", "head_dim", "tie_word_embeddings")
    left_out += ("rms_norm_eps", "max_position_embeddings", "initializer_range", "pad_token_id")
    edit_config(folder, **dict.fromkeys(left_out))
    config = load_hf_config(folder)
    assert (config.rope_theta, config.num_key_value_heads, config.head_dim) == (1e4, 4, 8)
    assert (config.tie_word_embeddings, config.rms_norm_eps) == (False, 1e-6)
    assert config.max_position_embeddings == 2048
    torch.testing.assert_close(logits_in(folder), transformers_logits(folder), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gpt2"}, ["'gpt2'", "llama", "qwen3"]),
        ({"model_type": "qwen2"}, ["'qwen2'", "biases"]),
        ({"model_type": None}, ["not the config.json of a model"]),
        ({"hidden_size": None}, ["hidden_size", "missing"]),
        ({"hidden_size": "32"}, ["hidden_size", "'32'"]),
        ({"num_attention_heads": 3}, ["num_attention_heads", "3"]),
        ({"attention_bias": True}, ["attention_bias", "True"]),
        ({"mlp_bias": True}, ["mlp_bias"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "'gelu'", "silu"]),
        ({"use_sliding_window": True}, ["use_sliding_window"]),
        ({"layer_types": ["full_attention", "sliding_attention"]}, ["sliding_attention"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor", "0.5"]),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, ["'dynamic'", "llama3"]),
        ({"rope_scaling": {"rope_type": "linear"}}, ["rope_scaling", "factor"]),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, ["low_freq_factor"]),
        ({"rope_scaling": {"rope_type": "yarn"}}, ["rope_scaling", "factor"]),
        ({"rope_scaling": {"rope_type": "yarn", "factor": "x"}}, ["rope_scaling", "factor"]),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "mscale": 1.0}}, ["mscale"]),
        ({"minimind": {"speed": 3}}, ["speed"]),
        ({"minimind": 3}, ["not the config.json of a model"]),
    ],
    ids=str,
)
@pytest.mark.faults("a config.json with wrong values", "the field is named")
def test_a_configuration_that_cannot_be_used_is_named(
    saved: Callable[..., tuple[Path, Transformer]], changes: dict[str, Any], words: list[str]
):
    folder, _ = saved()
    edit_config(folder, **changes)
    with pytest.raises(CheckpointError) as caught:
        load_hf_config(folder)
    for word in [str(folder / "config.json"), *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", "3", "null"])
@pytest.mark.faults("a config.json that is none", "named")
def test_a_configuration_that_is_none(tmp_path: Path, text: str):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json: not the config.json of a model"):
        load_hf_config(tmp_path)
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read"):
        load_hf_config(tmp_path / "nothing")


NORM = "model.layers.1.input_layernorm.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(NORM), [NORM, "missing"]),
        (lambda t: t.pop("model.layers.0.mlp.up_proj.weight"), ["0.mlp.up_proj", "missing"]),
        (lambda t: t.update({"model.extra": torch.ones(1)}), ["model.extra", "not of this model"]),
        (lambda t: t.update({NORM: torch.ones(33)}), [NORM, "[33]", "[32]"]),
        (lambda t: t.update({NORM: torch.ones(32, 1)}), [NORM, "[32, 1]", "[32]"]),
        (
            lambda t: t.update({"model.embed_tokens.weight": torch.ones(98, 32)}),
            ["embed_tokens", "[98, 32]", "[97, 32]"],
        ),
        (
            # As many rows in all, split otherwise between query and key heads.
            lambda t: t.update({"model.layers.0.self_attn.q_proj.weight": torch.ones(36, 32)}),
            ["q_proj", "[36, 32]", "[48, 32]"],
        ),
        (
            lambda t: t.update({"lm_head.weight": torch.ones(97, 32)}),
            ["lm_head.weight", "differs", "tie_word_embeddings"],
        ),
    ],
)
@pytest.mark.faults("a tensor missing, misshapen or unknown", "named")
def test_a_wrong_tensor_is_named(
    saved: Callable[..., tuple[Path, Transformer]],
    change: Callable[[dict[str, Tensor]], object],
    words: list[str],
):
    folder, _ = saved()
    edit_tensors(folder, change)
    with pytest.raises(CheckpointError) as caught:
        load_hf_folder(folder)
    for word in [str(folder), *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_output_head_equal_to_tied_embeddings_is_left_out(
    saved: Callable[..., tuple[Path, Transformer]], dtype: torch.dtype
):
    folder, model = saved()

    def add_head(tensors: dict[str, Tensor]) -> None:
        embedding = tensors["model.embed_tokens.weight"].to(dtype)
        tensors["model.embed_tokens.weight"] = embedding
        tensors["lm_head.weight"] = embedding.clone()

    edit_tensors(folder, add_head)
    assert load_hf_folder(folder)[1].keys() == named(model).keys()


def test_an_untied_head_that_is_missing_is_named(
    saved: Callable[..., tuple[Path, Transformer]],
):
    folder, _ = saved()
    edit_config(folder, tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is missing"):
        load_hf_folder(folder)


@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "header", "folder"])
@pytest.mark.faults("weights cut, empty or garbage", "named")
def test_a_damaged_file_is_named(saved: Callable[..., tuple[Path, Transformer]], damage: str):
    folder, _ = saved()
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        contents = {"empty": b"", "cut": whole[:-100], "noise": os.urandom(2000)}
        path.write_bytes(contents.get(damage, whole[:8] + b"x" + whole[9:]))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a readable safetensors"):
        load_hf_folder(folder)


def test_a_missing_file_is_named(saved: Callable[..., tuple[Path, Transformer]]):
    folder, _ = saved()
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor model\.safet.*json"):
        load_hf_folder(folder)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'])
@pytest.mark.faults("a wrong safetensors index", "named")
def test_a_wrong_index_is_named(saved: Callable[..., tuple[Path, Transformer]], text: str):
    folder, _ = saved()
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json: not a safetensors index"):
        load_hf_folder(folder)


def test_a_missing_shard_is_named(hf_saved: Callable[..., Path]):
    folder = hf_saved("LlamaConfig", shards=True)
    first = min(folder.glob("model-*.safetensors"))
    first.unlink()
    with pytest.raises(CheckpointError, match=first.name):
        load_hf_folder(folder)


@pytest.mark.faults("weights of another model", "refused")
def test_weights_of_another_model_are_refused(saved: Callable[..., tuple[Path, Transformer]]):
    folder, model = saved()
    for changes in ({"num_hidden_layers": 1}, {"use_qk_norm": False}, {"num_hidden_layers": 3}):
        other = ModelConfig(**(model.config.to_dict() | changes))
        with pytest.raises(CheckpointError, match=r"not of this model|is missing"):
            join_fused(other, load_file(folder / "model.safetensors"), "test")

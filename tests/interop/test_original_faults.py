"""Files of the original that are damaged or of something else, and models that it has no word
for."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from original_models import DENSE, MIXED, random_lora, random_state
from small_adapters import named, random_adapter
from small_models import random_model, small_config
from torch import Tensor

from minimind.cli.main import run_verb
from minimind.errors import CheckpointError, ConfigError
from minimind.interop.conversion import convert
from minimind.interop.options import ConvertOptions
from minimind.interop.readers import open_source
from minimind.lora.folder import BaseModel
from minimind.lora.peft_format import save_adapter
from minimind.model.hf_config import load_hf_config
from minimind.model.state_dict import save_hf_folder

PLAIN = DENSE[1]
DOWN = "model.layers.1.mlp.down_proj.weight"
State = dict[str, Any]


class Code:
    """Runs a command where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.faults("code in a .pth", "refused; it does not run")
def test_code_in_a_file_is_not_run(tmp_path: Path):
    mark = tmp_path / "ran"
    torch.save(random_state(PLAIN) | {"epoch": Code(mark)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth: holds more than tensors.*mkdir"):
        open_source(tmp_path / "a.pth")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-300], "damaged or truncated"),
        (lambda data: data[: len(data) // 2], "damaged or truncated"),
        (lambda data: data[:1], "not a file of torch.save"),
        (lambda data: b"", "empty"),
        (lambda data: b"hello", "not a file of torch.save"),
    ],
    ids=["end", "half", "a byte", "nothing", "text"],
)
@pytest.mark.faults("a .pth cut short, empty or of something else", "named")
def test_a_damaged_file_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes], message: str):
    path = tmp_path / "a.pth"
    torch.save(random_state(PLAIN), path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=rf"a\.pth: {message}"):
        open_source(path)
    output = tmp_path / "out"
    flags = ["--input", str(path), "--to", "minimind", "--output", str(output)]
    assert run_verb("convert", flags) == 2
    assert not output.exists()


def test_a_file_from_before_pytorch_1_6_is_refused(tmp_path: Path):
    path = tmp_path / "a.pth"
    torch.save(random_state(PLAIN), path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"before 1\.6"):
        open_source(path)


@pytest.mark.faults("a pipe in place of a .pth, or of a file that an index names", "refused")
@pytest.mark.parametrize("name", ["a.pth", "pytorch_model.bin", "part.bin"])
def test_pipes(tmp_path: Path, name: str):
    os.mkfifo(tmp_path / name)
    if name != "a.pth":
        (tmp_path / "config.json").write_text('{"model_type": "minimind"}')
    index = {"weight_map": {DOWN: "part.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=rf"{name}: cannot be read: it is a pipe"):
        open_source(tmp_path)


def without(name: str) -> Callable[[State], State]:
    return lambda state: {n: t for n, t in state.items() if n != name}


def plus(name: str, value: Any) -> Callable[[State], State]:
    return lambda state: state | {name: value}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(DOWN), f"the tensor {DOWN} is missing"),
        (without("model.layers.0.self_attn.q_proj.weight"), "q_proj.weight is missing"),
        (plus(DOWN, torch.ones(32, 40)), r"down_proj\.weight is \[32, 40\].*\[32, 48\]"),
        (plus(DOWN, torch.full((32, 48), torch.nan)), r"down_proj\.weight holds 1,536.*NaN"),
        (plus("extra.weight", torch.ones(3)), r"not of this model: extra\.weight"),
        (plus("vision_encoder.x.weight", torch.ones(3)), "a model that sees.*vision_encoder"),
        (plus("value_head.weight", torch.ones(1, 32)), "a critic.*value_head"),
        (plus(DOWN, torch.ones(32, 48, dtype=torch.int8)), r"is torch\.int8"),
        (plus(DOWN, torch.ones(32, 48).to_sparse()), "is a torch.sparse_coo tensor on cpu"),
        (plus(DOWN, torch.ones(32, 48, device="meta")), "tensor on meta"),
        (plus(DOWN, torch.ones(1).expand(1 << 24, 1 << 24)), "repeats values, 4 bytes for"),
        (plus(DOWN, torch.ones(32, 48).cfloat()), "is torch.complex64; weights are"),
        (plus("model.layers." + "9" * 5000 + ".x", torch.ones(1)), "not of this model"),
        (lambda state: {1: torch.ones(3)}, "holds no state_dict"),
        (plus("epoch", 3), "holds no state_dict"),
        (plus(DOWN.replace("weight", "lora.A.weight"), torch.ones(2, 48)), "has only"),
        (lambda state: list(state.values()), "holds no state_dict"),
        (lambda state: {"w": torch.ones(3)}, "not a model of the original.*: w"),
        (lambda state: {}, "not a model of the original.*none"),
        (plus("model.layers.0.self_attn.k_proj.weight", torch.tensor(1.0)), "which is no weight"),
    ],
)
@pytest.mark.faults(
    "a .pth with tensors missing, misshapen, NaN or repeated without end",
    "the tensor is named",
)
def test_a_state_that_is_no_model_is_refused(
    tmp_path: Path, change: Callable[[State], Any], message: str
):
    torch.save(change(random_state(PLAIN)), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=message):
        convert(tmp_path / "a.pth", "minimind", tmp_path / "out", ConvertOptions())
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_another_model_is_refused(tmp_path: Path):
    torch.save(random_state(PLAIN), tmp_path / "base.pth")
    lora = random_lora(DENSE[0], 8)
    torch.save(lora, tmp_path / "lora.pth")
    other = dataclasses.replace(PLAIN, hidden=40, size=5)
    torch.save(random_lora(other, 8), tmp_path / "other.pth")
    options = ConvertOptions(base=tmp_path / "base.pth")
    open_source(tmp_path / "lora.pth", options)  # the names of 2504 are of the same linears
    with pytest.raises(CheckpointError, match=r"matrix of \[40, 40\].*\[32, 32\]"):
        open_source(tmp_path / "other.pth", options)
    torch.save({k: v for k, v in lora.items() if "lora.A" in k}, tmp_path / "half.pth")
    with pytest.raises(CheckpointError, match=r"needs lora\.A and lora\.B"):
        open_source(tmp_path / "half.pth", options)


def save_model(folder: Path, family: str, **fields: Any) -> Path:
    config = small_config(family, **fields)
    save_hf_folder(folder, config, named(random_model(config)), torch.float32)
    return folder


MOE: dict[str, Any] = {"num_experts": 3, "moe_intermediate_size": 20}
LIKE_2: dict[str, Any] = {"head_dim": 8}


@pytest.mark.parametrize(
    ("family", "fields", "generation", "problem"),
    [
        ("qwen3", {}, "2601", "QK norm"),
        ("llama", LIKE_2, "3", "model without QK norm"),
        ("llama", {}, None, "head_dim apart"),
        ("llama", LIKE_2 | {"tie_word_embeddings": False}, None, "untied output head"),
        ("llama", LIKE_2 | MOE, None, "moe_intermediate_size apart"),
        ("llama", LIKE_2 | {"rope_scaling": "yarn"}, "2504", "rope_scaling"),
        ("qwen3", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, None, "rope_scaling"),
        ("qwen3", MOE | {"mlp_only_layers": (0,)}, None, "layers without experts"),
        ("qwen3", MOE | {"n_shared_experts": 1}, None, "shared experts"),
    ],
)
def test_a_model_that_the_generation_cannot_hold_is_refused(
    tmp_path: Path, family: str, fields: dict[str, Any], generation: str | None, problem: str
):
    folder = save_model(tmp_path / "model", family, **fields)
    with pytest.raises(ConfigError, match=rf"generation .* of the original has no {problem}"):
        convert(folder, "pth", tmp_path / "a.pth", ConvertOptions(generation=generation))
    assert not (tmp_path / "a.pth").exists()


def test_what_the_scripts_must_be_told_is_said(tmp_path: Path):
    folder = save_model(tmp_path / "model", "qwen3", rope_theta=1e4)
    converted = convert(folder, "pth", tmp_path / "a.pth", ConvertOptions())
    (note,) = [note for note in converted.notes if "give their model configuration" in note]
    for field in ("num_attention_heads=4", "vocab_size=97", "rope_theta=10000.0", "head_dim=12"):
        assert field in note


def test_an_adapter_of_other_than_square_linears_is_refused_as_pth(tmp_path: Path):
    config = small_config("llama", head_dim=8)
    base = save_model(tmp_path / "base", "llama", head_dim=8)
    save_adapter(tmp_path / "a", config, random_adapter(config), BaseModel.of(base))
    with pytest.raises(ConfigError, match=r"square linears alone.*down_proj is none.*--to pth"):
        convert(tmp_path / "a", "lora_pth", tmp_path / "a.pth", ConvertOptions())
    square = random_adapter(config, {"q_proj": 3, "o_proj": 20})
    save_adapter(tmp_path / "b", config, square, BaseModel.of(base))
    converted = convert(tmp_path / "b", "lora_pth", tmp_path / "b.pth", ConvertOptions())
    assert "apply_lora(model, rank=20)" in " ".join(converted.notes)
    written: dict[str, Tensor] = torch.load(tmp_path / "b.pth", weights_only=True)
    assert {tuple(t.shape) for n, t in written.items() if "lora.A" in n} == {(20, 32)}
    assert len(written) == 2 * 2 * 2


def test_experts_of_2504_have_one_shared(tmp_path: Path):
    torch.save(random_state(MIXED[1]), tmp_path / "a.pth")
    options = ConvertOptions(generation="2504")
    with pytest.raises(ConfigError, match="two shared experts"):
        convert(tmp_path / "a.pth", "pth", tmp_path / "b.pth", options)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--to", "hf", "--set", "rope_theta=1e4"], "--set is for weights that do not say it"),
        (["--to", "hf", "--base", "elsewhere"], "--base is for weights that do not say it"),
        (["--to", "hf", "--generation", "3"], "--generation is an option of --to pth"),
        (["--to", "pth", "--allow_custom_code"], "--allow_custom_code is an option of --to hf"),
        (["--to", "pth", "--base_name", "someone/x"], "--base_name is an option of --to peft"),
        (["--to", "hf", "--config", "missing.json"], r"missing\.json: cannot be read"),
    ],
    ids=str,
)
def test_an_option_that_would_do_nothing_is_refused(
    tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    folder = save_model(tmp_path / "model", "qwen3")
    output = tmp_path / "out"
    assert run_verb("convert", ["--input", str(folder), "--output", str(output), *flags]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not output.exists()


def test_fields_come_from_a_file_and_then_from_flags(tmp_path: Path):
    torch.save(random_state(PLAIN), tmp_path / "a.pth")
    (tmp_path / "fields.json").write_text('{"rope_theta": 1e4, "rms_norm_eps": 1e-3}')
    flags = ["--config", str(tmp_path / "fields.json"), "--set", "rms_norm_eps=1e-4"]
    output = ["--to", "minimind", "--output", str(tmp_path / "out")]
    assert run_verb("convert", ["--input", str(tmp_path / "a.pth"), *output, *flags]) == 0
    config = load_hf_config(tmp_path / "out")
    assert (config.rope_theta, config.rms_norm_eps) == (1e4, 1e-4)

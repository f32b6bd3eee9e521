"""What a resolved run is refused for on a given device, and whether the advice helps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from small_adapters import random_adapter
from small_folders import small_folder

from minimind.data.tokenizer_training import train_tokenizer
from minimind.errors import ConfigError
from minimind.lora.folder import BaseModel, load_folder_config
from minimind.lora.peft_format import save_adapter
from minimind.run.arguments import collect_arguments
from minimind.run.checks import check_packages
from minimind.run.run import Run
from minimind.runtime.devices import Device
from minimind.runtime.ranks import Ranks
from minimind.samples.text import load_sample_tokenizer

GIB = 1 << 30
CPU = Device(torch.device("cpu"), "some CPU", False, "fp32", "", None, 4 * GIB)
GPU = Device(torch.device("cuda", 0), "some GPU", True, "bf16", "", None, 4 * GIB)
SIZES: dict[str, Any] = {"model": "minimind3", "seq_len": 512, "batch_size": 64}


def resolve(device: Device, num_ranks: int = 1, **options: Any) -> Run:
    return Run.on(collect_arguments(SIZES | options), Ranks(0, 0, num_ranks), device)


def train(device: Device, **options: Any) -> Run:
    return Run.on(collect_arguments(options), Ranks(0, 0, 1), device)


def test_an_optimizer_of_a_package_that_is_missing():
    run = resolve(GPU, set={"ds_config.optimizer.type": "MuAdam"})
    with pytest.raises(ConfigError, match=r"optimizer.type MuAdam needs mup installed"):
        check_packages(run.resolved)


@pytest.fixture
def other_tokenizer(tmp_path: Path) -> Path:
    """Smaller than the sample one, with other tokens by the same ids."""
    train_tokenizer(["of other words " * 20], vocab_size=304).save(tmp_path / "other")
    return tmp_path / "other"


def test_a_tokenizer_beside_weights_of_another(tmp_path: Path, other_tokenizer: Path):
    base = small_folder(tmp_path / "base")
    given: dict[str, Any] = {"from_checkpoint": str(base), "output_dir": str(tmp_path / "run")}
    same = tmp_path / "same"
    load_sample_tokenizer().save(same)
    for stage in ("pretrain", "sft", "lora", "dpo"):
        train(CPU, stage=stage, tokenizer=str(same), **given).check()
        with pytest.raises(ConfigError, match=r"token \d+ is .* --set new_tokenizer=true"):
            train(CPU, stage=stage, tokenizer=str(other_tokenizer), **given).check()
    train(CPU, stage="sft", tokenizer=str(other_tokenizer), new_tokenizer=True, **given).check()
    chosen = {"tokenizer": str(other_tokenizer), "new_tokenizer": True}
    with pytest.raises(ConfigError, match="adapters leave the embedding as it is"):
        train(CPU, stage="lora", **chosen, **given).check()
    with pytest.raises(ConfigError, match="the reference of --stage dpo is the checkpoint as it"):
        train(CPU, stage="dpo", **chosen, **given).check()
    with pytest.raises(ConfigError, match="new_tokenizer=true is for a --tokenizer beside"):
        train(CPU, stage="sft", new_tokenizer=True, **given).check()


def test_a_tokenizer_that_ends_documents_otherwise_is_said(tmp_path: Path):
    """As that of an instruct model is given beside its base model."""
    base = small_folder(tmp_path / "base")
    other = tmp_path / "other"
    load_sample_tokenizer().save(other)
    path = other / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"eos_token": "<|endoftext|>"}
    path.write_text(json.dumps(config), encoding="utf-8")
    run = train(CPU, from_checkpoint=str(base), tokenizer=str(other))
    run.check()
    assert "ends a document with token 0" in run.describe()


def test_a_model_without_a_tokenizer_asks_for_one_and_trusts_it(tmp_path: Path):
    base, beside = small_folder(tmp_path / "base"), tmp_path / "beside"
    beside.mkdir()
    for file in base.glob("tokenizer*"):
        file.rename(beside / file.name)
    with pytest.raises(ConfigError, match="brings no tokenizer: give its own with --tokenizer"):
        train(CPU, from_checkpoint=str(base))
    run = train(CPU, from_checkpoint=str(base), tokenizer=str(beside))
    run.check()
    assert "taken on trust" in run.describe()


def test_an_adapter_whose_model_knows_other_tokens(tmp_path: Path, other_tokenizer: Path):
    base = small_folder(tmp_path / "base")
    config, folder = load_folder_config(base), tmp_path / "adapter"
    save_adapter(folder, config, random_adapter(config), BaseModel.of(base))
    train(CPU, stage="sft", from_checkpoint=str(folder)).check()
    shutil.copytree(other_tokenizer, folder, dirs_exist_ok=True)
    with pytest.raises(ConfigError, match=r"token \d+ is .* put the model's own tokenizer"):
        train(CPU, stage="sft", from_checkpoint=str(folder)).check()


def test_a_flash_attention_that_cannot_be_had_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MINIMIND_FLASH", "3")
    with pytest.raises(ConfigError, match="MINIMIND_FLASH=3, but the run is on cpu"):
        resolve(CPU).check()

"""DeepSpeed's shards as the input of a conversion: the weights of every ZeRO stage and number of
ranks, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_runs import Train
from two_ranks import TrainOnTwo

from minimind.errors import CheckpointError
from minimind.interop.conversion import convert
from minimind.interop.options import ConvertOptions
from minimind.interop.readers import open_source
from minimind.model.hf_config import load_hf_config
from minimind.runtime.digests import DIGESTS

ONE_STEP = ("--max_steps", "1", "--eval_every", "0", "--save_every", "0")
GROUPS = ("--set", 'lr_factors={"embed": 0.1, "norm": 0.5}', "--set", "vocab_size=1583")
"""Three groups of parameters, and sizes that two ranks do not divide evenly."""
EXPERTS = ("--set", "num_experts=3", "--set", "n_shared_experts=1")
UNTIED = ("--set", "tie_word_embeddings=false")
slow = pytest.mark.slow


def check_shards(run: Path) -> Path:
    """The shards are the weights of the folder beside them, which was gathered in training."""
    checkpoint = run / "checkpoints" / "latest"
    source = open_source(checkpoint / "engine")
    gathered = load_file(checkpoint / "model" / "model.safetensors")
    assert source.config == load_hf_config(checkpoint / "model")
    assert set(source.tensors) == set(gathered)
    for name, tensor in gathered.items():
        assert torch.equal(source.tensors[name], tensor), name
        assert source.tensors[name].dtype == torch.float32
    return checkpoint


@pytest.mark.parametrize(
    ("name", "ranks", "more"),
    [
        ("zero0", 1, GROUPS),
        ("zero2", 2, GROUPS),
        ("zero3", 2, UNTIED),
        pytest.param("zero0", 2, EXPERTS, marks=slow),
        pytest.param("zero1", 1, GROUPS, marks=slow),
        pytest.param("zero1", 2, UNTIED, marks=slow),
        pytest.param("zero2", 1, EXPERTS, marks=slow),
        pytest.param("zero3", 1, GROUPS, marks=slow),
        pytest.param("zero3", 2, EXPERTS, marks=slow),
        pytest.param("zero3", 2, GROUPS, marks=slow),
    ],
)
def test_shards_hold_the_weights_that_training_gathered(
    flags: list[str],
    train: Train,
    train_on_two: TrainOnTwo,
    tmp_path: Path,
    precision: str,
    name: str,
    ranks: int,
    more: tuple[str, ...],
):
    flags = [*flags, *ONE_STEP, *more, "--ds_config", f"{name}.json"]
    if ranks == 1:
        assert train(*flags) == 0
    else:
        train_on_two(*flags)
    check_shards(tmp_path / "run")


def test_a_checkpoint_without_its_model_folder_is_converted_from_its_shards(
    flags: list[str], train: Train, tmp_path: Path
):
    assert train(*flags, *ONE_STEP) == 0
    checkpoint = check_shards(tmp_path / "run")
    convert(checkpoint, "hf", tmp_path / "gathered", ConvertOptions())
    options = ConvertOptions(tokenizer=checkpoint / "moved")
    (checkpoint / "model").rename(checkpoint / "moved")
    converted = convert(checkpoint, "hf", tmp_path / "sharded", options)
    assert "read from the shards of 1 rank(s), ZeRO stage 2" in converted.notes
    first, second = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}
        for name in ("gathered", "sharded")
    )
    del first["README.md"], second["README.md"]  # its title is the folder's name
    assert first == second


@pytest.mark.faults(
    "a rank's shards missing, damaged or of another checkpoint",
    "the rank or the file is named",
)
def test_damaged_shards_are_refused(flags: list[str], train_on_two: TrainOnTwo, tmp_path: Path):
    train_on_two(*flags, *ONE_STEP)
    checkpoint = (tmp_path / "run" / "checkpoints" / "latest").resolve()
    engine, kept = checkpoint / "engine", tmp_path / "kept"
    shutil.copytree(engine, kept)
    (second,) = engine.glob("*zero_pp_rank_1_*")
    output = tmp_path / "out"

    def refusal() -> str:
        with pytest.raises(CheckpointError) as caught:
            convert(engine, "hf", output, ConvertOptions())
        assert not output.exists()
        assert not list(tmp_path.glob("out.tmp*"))
        return str(caught.value)

    second.unlink()
    assert "the file of rank 1 is missing" in refusal()
    shutil.copy(kept / second.name, second.with_name(second.name.replace("rank_1", "rank_2")))
    shutil.copy(kept / second.name, second)
    assert "two checkpoints are mixed" in refusal()
    second.with_name(second.name.replace("rank_1", "rank_2")).unlink()
    second.write_bytes(second.read_bytes()[:5000])
    assert f"{second}: damaged" in refusal()
    shutil.copy(next(kept.glob("*zero_pp_rank_0_*")), second)
    assert f"{second}: damaged: its size is right" in refusal()
    meta = json.loads((checkpoint / "meta.json").read_text())
    absurd = json.dumps(meta | {"world_size": 10**15})
    (checkpoint / "meta.json").write_text(absurd)
    assert "the file of rank 2 is missing" in refusal()
    del meta[DIGESTS]  # as earlier versions wrote it
    (checkpoint / "meta.json").write_text(json.dumps(meta))
    assert "are there" in refusal()  # rank 0's part twice, and rank 1's not at all
    torch.save({"optimizer_state_dict": os.getcwd}, second)
    assert "posix.getcwd. Nothing of it was run" in refusal()
    (checkpoint / "meta.json").write_text("{}")
    assert "not the description of a checkpoint" in refusal()


@pytest.mark.slow
def test_adapters_and_critics_are_no_part_of_the_model(
    flags: list[str], train: Train, tmp_path: Path
):
    assert train(*flags, *ONE_STEP) == 0
    common = ["--from_checkpoint", str(tmp_path / "run"), "--seq_len", "64", *ONE_STEP]
    common += ["--set", "eval_rows=4"]
    lora = [*common, "--stage", "lora", "--output_dir", str(tmp_path / "lora")]
    assert train(*lora) == 0
    with pytest.raises(CheckpointError, match="holds adapters alone"):
        open_source(tmp_path / "lora" / "checkpoints" / "latest" / "engine")
    ppo = [*common, "--stage", "ppo", "--output_dir", str(tmp_path / "ppo")]
    ppo += ["--set", "train_batch_size=2", "--set", "max_new_tokens=4", "--ds_config", "zero0.json"]
    assert train(*ppo) == 0
    check_shards(tmp_path / "ppo")

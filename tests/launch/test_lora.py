"""Runs of `--stage lora`: what trains, what is kept, and who reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_adapters import explicit_sum, named
from small_models import random_model, small_config
from torch import nn
from training_runs import (
    WITHOUT_CLIPPING,
    Train,
    assert_same_weights,
    final_weights,
    read_losses,
    train_until_killed,
)
from two_ranks import TrainOnTwo

from minimind.engine.stage import BuildContext, StageModels
from minimind.inference.load import load_model
from minimind.lora.adapter import LoraPart
from minimind.lora.folder import load_adapter
from minimind.model.state_dict import (
    load_hf_config,
    load_hf_folder,
    save_hf_folder,
    split_fused,
)
from minimind.samples.text import load_sample_tokenizer
from minimind.stages.lora import Lora


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("base"))


def save_random_model(folder: Path, **changes: Any) -> Path:
    """A Hugging Face folder with the sample data's tokenizer."""
    tokenizer = load_sample_tokenizer()
    config = small_config(vocab_size=tokenizer.vocab_size, **changes)
    save_hf_folder(folder, config, named(random_model(config)), torch.float32)
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="session")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        for number in range(60):
            question = {"role": "user", "content": f"{number} + {number}?" * (1 + number % 3)}
            answer = {"role": "assistant", "content": f"{2 * number}. " * (1 + number % 5)}
            file.write(json.dumps({"conversations": [question, answer]}) + "\n")
    return path


@pytest.fixture
def flags(run_flags: list[str], base: Path, chats: Path) -> list[str]:
    """Of a run in tmp_path/run, at a rate that shows within six steps."""
    data = ["--data", str(chats), "--val_data", str(chats)]
    start = ["--stage", "lora", "--from_checkpoint", str(base), "--learning_rate", "1e-2"]
    return [*run_flags, *data, *start]


@pytest.fixture
def policies(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The modules that runs in this process train."""
    found: list[nn.Module] = []
    build = Lora.build_models

    def watched(self: Lora, context: BuildContext) -> StageModels:
        models = build(self, context)
        found.append(models.policy)
        return models

    monkeypatch.setattr(Lora, "build_models", watched)
    return found


def adapter_folder(run: Path) -> Path:
    return run / "checkpoints" / "latest" / "adapter"


def saved_adapter(run: Path) -> dict[str, LoraPart]:
    folder = adapter_folder(run)
    return load_adapter(folder, load_hf_config(folder))


@pytest.mark.usefixtures("precision")
def test_a_run_trains_adapters_alone_and_keeps_them_alone(
    train: Train, flags: list[str], base: Path, tmp_path: Path, policies: list[nn.Module]
):
    assert train(*flags, "--set", "lora_plot=true", "--sample_every", "6") == 0
    run = tmp_path / "run"
    losses = [loss for _, loss, _ in read_losses(run)]
    assert losses[-1] < losses[0] - 0.3
    assert (run / "adapter.png").read_bytes().startswith(b"\x89PNG")
    (policy,) = policies
    before = load_hf_folder(base)[1]
    for name, parameter in policy.named_parameters():
        if "lora" not in name:
            assert torch.equal(parameter, before[name].to(parameter.dtype)), name
    checkpoint = run / "checkpoints" / "latest"
    assert {p.name for p in checkpoint.iterdir() if p.is_dir()} == {"adapter", "engine"}
    tensors = load_file(adapter_folder(run) / "adapter_model.safetensors")
    count = sum(tensor.numel() for tensor in tensors.values())
    saved = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert (
        saved["num_trained"]
        == count
        == 2 * 16 * ((32 + 48) + 2 * (32 + 24) + (48 + 32) + 3 * (32 + 48))
    )
    (states,) = (checkpoint / "engine").glob("*model_states.pt")
    engine = torch.load(states, weights_only=False)["module"]
    assert sum(tensor.numel() for tensor in engine.values()) == count
    assert all("lora" in name for name in engine)
    adapter, config = saved_adapter(run), load_hf_config(base)
    merged = split_fused(config, final_weights(run))
    summed = explicit_sum(split_fused(config, before), (adapter, 1.0))
    for name, weight in merged.items():
        torch.testing.assert_close(weight.double(), summed[name], rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("precision")
def test_every_zero_stage_takes_the_same_steps_on_one_rank_and_on_two(
    train: Train, train_on_two: TrainOnTwo, flags: list[str], tmp_path: Path
):
    flags = [*flags, *WITHOUT_CLIPPING]
    assert train(*flags) == 0
    reference = saved_adapter(tmp_path / "run")
    for name in ("zero0", "zero1", "zero2", "zero3"):
        for ranks in (1, 2):
            other = tmp_path / f"{name} on {ranks}"
            run = [*flags, "--ds_config", f"{name}.json", "--output_dir", str(other)]
            if ranks == 1:
                assert train(*run) == 0
            else:
                train_on_two(*run)
            assert read_losses(tmp_path / "run") == read_losses(other)
            for part_name, part in saved_adapter(other).items():
                assert torch.equal(part.delta(), reference[part_name].delta()), part_name


def test_experts_take_the_same_steps_gathered_or_not(
    train: Train, flags: list[str], tmp_path: Path
):
    experts = {"num_experts": 3, "num_experts_per_tok": 2, "n_shared_experts": 1}
    start = ["--from_checkpoint", str(save_random_model(tmp_path / "base", **experts))]
    start += [*WITHOUT_CLIPPING, "--max_steps", "3"]
    for name in ("zero2", "zero3"):
        run = ["--ds_config", f"{name}.json", "--output_dir", str(tmp_path / name)]
        assert train(*flags, *start, *run) == 0
    losses = read_losses(tmp_path / "zero2")
    assert losses[-1][1] < losses[0][1] - 0.1
    assert losses == read_losses(tmp_path / "zero3")
    names = saved_adapter(tmp_path / "zero3")
    assert "model.layers.1.mlp.experts.2.gate_proj" in names
    assert "model.layers.0.mlp.shared_experts.0.down_proj" in names
    assert not any(name.endswith("mlp.gate") for name in names)


@pytest.mark.parametrize("name", ["zero0", "zero2", "zero3"])
def test_in_bf16_the_base_has_no_masters_and_adapters_have_exact_ones(
    train: Train, flags: list[str], tmp_path: Path, policies: list[nn.Module], name: str
):
    half = ["--ds_config", f"{name}.json", "--set", "ds_config.bf16.enabled=true"]
    run = [*flags, *half, "--max_steps", "1", "--learning_rate", "1e-6"]
    assert train(*run) == 0
    assert all(p.dtype == torch.bfloat16 for p in policies[0].parameters())
    for part_name, part in saved_adapter(tmp_path / "run").items():
        # One step of Adam at this rate from B = 0, which bf16 weights near 0.02 would not show.
        assert 0 < part.b_OR.abs().max() <= 1.1e-6, part_name
        rounded = part.a_RI.bfloat16().float()
        assert not torch.equal(rounded, part.a_RI)


@pytest.mark.parametrize("name", ["zero0", "zero2", "zero3"])
def test_a_stopped_run_resumes_bitwise(train: Train, flags: list[str], tmp_path: Path, name: str):
    # One rate throughout: a run of four steps has another schedule than one of six.
    flags = [*flags, "--ds_config", f"{name}.json", "--set", "min_lr_ratio=1"]
    assert train(*flags, "--output_dir", str(tmp_path / "whole")) == 0
    assert train(*flags, "--max_steps", "4") == 0
    again = ["--resume", "--output_dir", str(tmp_path / "run"), "--max_steps", "6"]
    assert train(*again) == 0
    assert_same_weights(tmp_path / "whole", tmp_path / "run")
    one, other = (
        load_file(adapter_folder(tmp_path / run) / "adapter_model.safetensors")
        for run in ("whole", "run")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_killed_in_a_save_resumes_bitwise(train: Train, flags: list[str], tmp_path: Path):
    assert train(*flags, "--output_dir", str(tmp_path / "whole")) == 0
    train_until_killed(*flags, after="minimind.stages.lora.save_adapter", calls=2)
    assert train("--resume", "--output_dir", str(tmp_path / "run")) == 0
    assert_same_weights(tmp_path / "whole", tmp_path / "run")


@pytest.mark.usefixtures("precision")
def test_two_ranks_hand_over_to_one(
    train: Train, train_on_two: TrainOnTwo, flags: list[str], tmp_path: Path
):
    flags = [*flags, *WITHOUT_CLIPPING, "--set", "min_lr_ratio=1"]
    assert train(*flags, "--output_dir", str(tmp_path / "whole")) == 0
    train_on_two(*flags, "--max_steps", "4")
    assert train("--resume", "--output_dir", str(tmp_path / "run"), "--max_steps", "6") == 0
    assert [step for step, *_ in read_losses(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    assert_same_weights(tmp_path / "whole", tmp_path / "run")


def test_other_stages_start_from_the_merged_model(
    train: Train, flags: list[str], tmp_path: Path, run_flags: list[str], chats: Path
):
    assert train(*flags) == 0
    tuned = ["--stage", "sft", "--from_checkpoint", str(tmp_path / "run"), "--data", str(chats)]
    again = [*run_flags, *tuned, "--val_data", str(chats), "--output_dir", str(tmp_path / "sft")]
    assert train(*again, "--max_steps", "1", "--learning_rate", "1e-12") == 0
    merged, after = final_weights(tmp_path / "run"), final_weights(tmp_path / "sft")
    for name, weight in after.items():
        torch.testing.assert_close(weight, merged[name], rtol=0, atol=1e-9)
    model, _ = load_model(adapter_folder(tmp_path / "run"))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, merged[name])


def test_adapters_are_trained_beside_adapters(train: Train, flags: list[str], tmp_path: Path):
    assert train(*flags, "--max_steps", "2") == 0
    first = final_weights(tmp_path / "run")
    second = ["--from_checkpoint", str(tmp_path / "run"), "--output_dir", str(tmp_path / "two")]
    assert train(*flags, *second, "--max_steps", "2", "--learning_rate", "1e-12") == 0
    for name, weight in final_weights(tmp_path / "two").items():
        torch.testing.assert_close(weight, first[name], rtol=0, atol=1e-9)


def test_what_does_not_fit_says_why(
    train: Train,
    flags: list[str],
    base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    assert train(*flags, "--set", 'lora_ranks={"wq": 4}') == 2
    error = capsys.readouterr().err
    assert "no linear's name matches wq" in error
    assert "model.layers.0.self_attn.q_proj" in error
    assert train(*flags, "--max_steps", "2") == 0
    again = ["--resume", "--output_dir", str(tmp_path / "run"), "--max_steps", "4"]
    capsys.readouterr()
    assert train(*again, "--set", 'lora_ranks={"qkv_proj": 4}') == 2
    assert "has rank 16 and alpha 32" in capsys.readouterr().err
    moved = base.rename(base.with_name("moved"))
    try:
        assert train("--stage", "sft", "--from_checkpoint", str(tmp_path / "run")) == 2
        assert "the model it belongs to was not found" in capsys.readouterr().err
    finally:
        moved.rename(base)

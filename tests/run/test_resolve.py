"""From flags to what will run: where each thing comes from, and what contradicts what."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from resolved_runs import CPU, GPU, LOADER, SIZE_FLAGS, TINY_RATE, USUAL_RATE, Resolve

from minimind.config.deepspeed_json import SHIPPED, load_ds_config, precision
from minimind.config.model import PRESETS, load_model_config
from minimind.config.sizes import default_sizes
from minimind.engine.checkpoint import Checkpoint
from minimind.errors import ConfigError
from minimind.run.describe import describe_run
from minimind.runtime.devices import Device
from minimind.samples.text import load_sample_tokenizer


def test_nothing_given_trains_tiny_on_the_sample_tokenizer(resolved: Resolve):
    run = resolved()
    tokenizer = load_sample_tokenizer()
    assert (run.stage, run.model_name) == ("pretrain", "tiny")
    assert run.config == load_model_config("tiny", tokenizer_vocab=tokenizer.vocab_size)
    sizes = (run.seq_len, run.train_batch_size, run.micro_batch_size)
    assert sizes == dataclasses.astuple(default_sizes("cpu", "tiny"))
    assert run.learning_rate == TINY_RATE
    assert run.weights_folder is None
    assert run.ds_config["zero_optimization"]["stage"] == 2
    assert run.total_steps(LOADER) == 3


@pytest.mark.parametrize(
    ("model", "device", "sizes"),
    [
        ("minimind2-small", CPU, (1024, 4, 4)),
        ("minimind2-small", GPU, (1024, 128, 64)),
        ("minimind3", GPU, (1024, 128, 32)),
    ],
)
def test_sizes_follow_preset_and_device(
    resolved: Resolve, model: str, device: Device, sizes: tuple[int, ...]
):
    run = resolved("--model", model, device=device)
    assert (run.seq_len, run.train_batch_size, run.micro_batch_size) == sizes
    assert run.learning_rate == USUAL_RATE
    assert precision(run.ds_config) == ("bf16" if device is GPU else "fp32")


@pytest.mark.parametrize("name", sorted(path.name for path in SHIPPED.glob("*.json")))
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_resolves_under_every_file(resolved: Resolve, preset: str, name: str):
    """On either device and any number of ranks the same steps, all fit to be written down."""
    argv = ("--model", preset, "--ds_config", name)
    for device in (GPU,) if "fp16" in load_ds_config(name, {}) else (CPU, GPU):
        rows = set()
        for ranks in (1, 2, 4) if device is CPU else (1, 2, 8):
            run = resolved(*argv, device=device, ranks=ranks)
            text = json.dumps(run.to_dict())
            assert '"auto"' not in text
            saved = json.loads(text)
            assert saved["num_parameters"] == run.config.num_parameters
            assert saved["recipe"]["seq_len"] == run.seq_len
            assert saved["world_size"] == ranks
            assert saved["ds_config"]["optimizer"]["params"]["lr"] == run.learning_rate
            assert describe_run(run, load_sample_tokenizer(), LOADER)
            rows.add(run.train_batch_size)
        assert len(rows) == 1


def test_a_json_model_and_set(resolved: Resolve, tmp_path: Path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"hidden_size": 64, "num_attention_heads": 4, "vocab_size": 2000}))
    run = resolved("--model", str(path), "--set", "dropout=0.1", "--set", "betas=[0.9,0.95]")
    assert (run.config.hidden_size, run.config.dropout) == (64, 0.1)
    assert run.recipe.betas == (0.9, 0.95)
    assert run.ds_config["optimizer"]["params"]["betas"] == [0.9, 0.95]
    assert run.seq_len == 512
    wide = resolved("--model", "minimind3", "--set", "hidden_size=640")
    assert (wide.config.head_dim, wide.config.intermediate_size) == (80, 2048)


def test_a_row_beyond_the_context_is_refused(resolved: Resolve):
    with pytest.raises(ConfigError, match=r"seq_len 300.*max_position_embeddings 200"):
        resolved("--seq_len", "300", "--set", "max_position_embeddings=200")
    assert resolved("--set", "max_position_embeddings=200").seq_len == 200


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--ds_config", "zero9.json"], ["zero9.json", "zero2.json"]),
        (["--model", "huge"], ["huge", "tiny"]),
        (["--learning_rate", "-1"], ["learning_rate", "-1"]),
        (["--set", "train_batch_size=6", "--set", "micro_batch_size=4"], ["6", "4", "whole"]),
        (["--set", "warmup_steps=1.5"], ["warmup_steps", "1.5", "int"]),
        (["--set", "hidden_size=130"], ["hidden_size", "130", "num_attention_heads"]),
        (
            ["--learning_rate", "1e-3", "--set", "ds_config.optimizer.params.lr=0.01"],
            ["--learning_rate", "0.001", "optimizer.params.lr", "0.01"],
        ),
        (["--ds_config", "zero2_fp16.json"], ["fp16", "CPU", "zero2.json"]),
        (["--seed", "-1"], ["seed", "-1"]),
    ],
)
def test_what_does_not_fit_is_named(resolved: Resolve, argv: list[str], words: list[str]):
    with pytest.raises(ConfigError) as caught:
        resolved(*argv)
    for word in words:
        assert word in str(caught.value)


def test_the_rate_can_follow_the_batch(resolved: Resolve):
    argv = ("--learning_rate", "1e-3", "--set", "train_batch_size=64")
    assert resolved(*argv).learning_rate == 1e-3
    scaled = resolved(*argv, "--set", "scale_lr_with_batch=16")
    assert scaled.learning_rate == pytest.approx(2e-3)


def test_steps_are_given_or_follow_the_epochs(resolved: Resolve):
    assert resolved("--max_steps", "7").total_steps(LOADER) == 7
    assert resolved("--epochs", "2").total_steps(LOADER) == 5


def test_what_is_printed_says_what_will_run(resolved: Resolve):
    run = resolved("--max_steps", "7", "--learning_rate", "4e-3", *SIZE_FLAGS, ranks=2)
    text = describe_run(run, load_sample_tokenizer(), LOADER)
    for word in (
        "pretrain of tiny",
        f"{run.config.num_parameters:,} parameters",
        "some CPU x 2, fp32 (this CPU has no bf16 instructions), ZeRO stage 2",
        "16 rows x 256 tokens = micro-batch 8 x accumulation 1 x 2 rank(s)",
        "7 steps, 2.80 epochs of 10,000 tokens in 40 rows, 1.23% padding",
        "4.00e-03 peak",
    ):
        assert word in text


def test_a_longer_resumed_run_says_how_its_rate_jumps(resolved: Resolve):
    flags = ("--learning_rate", "1e-3", "--set", "schedule=cosine", *SIZE_FLAGS)

    def resumed(planned: str, step: int, *now: str) -> str:
        saved = dataclasses.asdict(resolved(*flags, "--max_steps", planned).recipe)
        start = Checkpoint(
            Path("runs/a/step-9"), {"step": step, "recipe": json.loads(json.dumps(saved))}
        )
        now_run = resolved(*flags, *now)
        return describe_run(now_run, load_sample_tokenizer(), LOADER, None, start)

    ended = resumed("100", 100, "--max_steps", "200")
    # Half way from the peak to a tenth of it; the step before was the old run's last.
    assert "rate jumps from 1.00e-04 at step 100 to 5.50e-04" in ended
    assert "--from_checkpoint runs/a/step-9 starts a new one" in ended
    assert "--max_steps 100 keeps" not in ended
    assert "--max_steps 100 keeps to the old course" in resumed("100", 50, "--max_steps", "200")
    by_epochs = resumed("3", 3, "--epochs", "4")
    assert "was to have 3 steps, and this one follows the course of a run of 10" in by_epochs
    for same in (
        resumed("200", 100, "--max_steps", "200"),
        resumed("100", 100, "--max_steps", "100"),
    ):
        assert "rate jumps" not in same


def test_what_runs_is_written_down_as_it_was_given(resolved: Resolve):
    run = resolved("--seed", "3", "--set", "dropout=0.1", "--set", "ds_config.dump_state=true")
    saved: dict[str, Any] = run.to_dict()
    assert saved["arguments"] == {
        "run": {},
        "recipe": {"seed": 3},
        "model": {"dropout": 0.1},
        "ds_config": {"dump_state": True},
    }
    assert saved["ds_config"]["dump_state"] is True
    assert saved["model"] == run.config.to_dict()
    assert {"torch", "deepspeed", "minimind", "python"} <= saved["versions"].keys()


def test_adapters_are_counted_beside_the_frozen_model(
    resolved: Resolve, checkpoint: Callable[..., Path]
):
    config = load_model_config("minimind2-small", tokenizer_vocab=None)
    start = ["--from_checkpoint", str(checkpoint(config))]
    sft, lora = (resolved("--stage", stage, *start, device=GPU) for stage in ("sft", "lora"))
    # Per layer 16 · (512+512 + 2·(512+128) + 512+512 + 3·(512+1408)).
    assert lora.num_trained == 8 * 16 * 9088
    text = describe_run(lora, load_sample_tokenizer(), LOADER)
    assert f"25,829,888 parameters + {lora.num_trained:,} trained" in text
    # No gradient of a frozen weight: two of six operations for each.
    assert lora.flops_per_token - sft.flops_per_token == 6 * lora.num_trained - 2 * 25_829_888
    assert lora.ds_config["zero_optimization"]["reduce_bucket_size"] == lora.num_trained // 4
    gathered = resolved("--stage", "lora", *start, "--ds_config", "zero3", device=GPU).ds_config
    whole = 25_829_888 + lora.num_trained
    assert gathered["zero_optimization"]["stage3_prefetch_bucket_size"] == whole // 10

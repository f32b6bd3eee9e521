"""From flags to what will run: where each thing comes from, and what contradicts what."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
import torch
from small_models import random_model, small_config

from minimind.config.deepspeed_json import SHIPPED, load_ds_config, precision
from minimind.config.model import PRESETS, ModelConfig, load_model_config
from minimind.config.sizes import default_sizes
from minimind.data.loader import PackedLoader
from minimind.data.tokenizer import Tokenizer
from minimind.engine.checkpoint import Checkpoint
from minimind.errors import CheckpointError, ConfigError
from minimind.model.state_dict import save_hf_folder
from minimind.run.describe import describe_run
from minimind.run.flags import parse_train_arguments
from minimind.run.resolve import (
    ResolvedRun,
    find_tokenizer,
    resolve_run,
)
from minimind.runtime.devices import Device
from minimind.runtime.ranks import Ranks
from minimind.samples.text import load_sample_tokenizer
from minimind.stages import STAGES
from minimind.stages.pretrain import Pretrain

CPU = Device(
    torch.device("cpu"), "some CPU", False, "fp32", "this CPU has no bf16 instructions", None
)
GPU = Device(torch.device("cuda", 0), "some GPU", True, "bf16", "", 1e15)

Resolve = Callable[..., ResolvedRun]


class AfterPretrain(Pretrain):
    """A stage that starts from trained weights."""

    name: ClassVar[str] = "after"
    needs_checkpoint: ClassVar[bool] = True


@dataclass
class Loader:
    """As much of a loader as describe_run looks at."""

    num_rows: int = 40
    tokens_per_epoch: int = 10_000
    padding_share: float = 0.0123
    num_truncated: int = 0

    def count_lost(self) -> int:
        return self.num_truncated // 2

    def steps(self, epochs: float) -> int:
        return math.ceil(self.num_rows * epochs / 16)


LOADER = cast(PackedLoader, Loader())
TINY_RATE = STAGES["pretrain"].recipe_type.learning_rates["tiny"]
SIZE_FLAGS = ("--seq_len", "256", "--set", "train_batch_size=16", "--set", "micro_batch_size=8")


@pytest.fixture
def resolved(monkeypatch: pytest.MonkeyPatch) -> Resolve:
    """resolved(*argv, device=…, ranks=…) as launch/train.py does it."""
    monkeypatch.setitem(STAGES, "after", AfterPretrain)

    def run(*argv: str, device: Device = CPU, ranks: int = 1) -> ResolvedRun:
        types = {name: stage.recipe_type for name, stage in STAGES.items()}
        arguments = parse_train_arguments(list(argv), types)
        return resolve_run(arguments, find_tokenizer(arguments), Ranks(0, 0, ranks), device)

    return run


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """checkpoint(config, tokenizer=…) -> a Hugging Face folder with a tokenizer."""

    def make(config: ModelConfig, tokenizer: Tokenizer | None = None) -> Path:
        weights = {name: p.detach() for name, p in random_model(config).named_parameters()}
        save_hf_folder(tmp_path / "weights", config, weights, torch.float32)
        (tokenizer or load_sample_tokenizer()).save(tmp_path / "weights")
        return tmp_path / "weights"

    return make


def small_tokenizer() -> Tokenizer:
    """Another tokenizer: the sample one without its last merges."""
    whole = load_sample_tokenizer()
    spec = json.loads(json.dumps(whole._spec))
    vocab, merges = spec["model"]["vocab"], spec["model"]["merges"]
    for _ in range(200):
        pair = merges.pop()
        del vocab["".join(pair if isinstance(pair, list) else pair.split(" "))]
    return Tokenizer(spec, whole._config, "smaller")


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
        ("minimind2-small", CPU, (1024, 8, 4)),
        ("minimind2-small", GPU, (1024, 128, 64)),
        ("minimind3", GPU, (1024, 128, 32)),
    ],
)
def test_sizes_follow_preset_and_device(
    resolved: Resolve, model: str, device: Device, sizes: tuple[int, ...]
):
    run = resolved("--model", model, device=device)
    assert (run.seq_len, run.train_batch_size, run.micro_batch_size) == sizes
    assert run.learning_rate == 5e-4
    assert precision(run.ds_config) == ("bf16" if device is GPU else "fp32")


@pytest.mark.parametrize("name", sorted(path.name for path in SHIPPED.glob("*.json")))
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("stage", ["pretrain", "after"])
def test_every_preset_resolves_under_every_file(
    resolved: Resolve, stage: str, preset: str, name: str
):
    """On either device and any number of ranks the same steps, all fit to be written down."""
    argv = ("--stage", stage, "--model", preset, "--ds_config", name, "--from_checkpoint", "none")
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


def test_a_checkpoint_brings_model_and_tokenizer(
    resolved: Resolve, checkpoint: Callable[..., Path]
):
    tokenizer = small_tokenizer()
    config = small_config("llama", vocab_size=1500)
    folder = checkpoint(config, tokenizer)
    run = resolved("--stage", "after", "--from_checkpoint", str(folder))
    assert run.config == config
    assert run.weights_folder == folder
    assert find_tokenizer(run.arguments).fingerprint == tokenizer.fingerprint
    # It is of no preset's size.
    assert run.model_name == ""
    assert run.learning_rate == 5e-4


def test_a_checkpoint_of_a_presets_size_trains_as_that_preset(
    resolved: Resolve, checkpoint: Callable[..., Path]
):
    config = load_model_config("tiny", tokenizer_vocab=load_sample_tokenizer().vocab_size)
    run = resolved("--from_checkpoint", str(checkpoint(config)))
    assert run.model_name == "tiny"
    assert run.learning_rate == TINY_RATE
    assert run.seq_len == default_sizes("cpu", "tiny").seq_len


def test_what_may_change_over_a_checkpoint(resolved: Resolve, checkpoint: Callable[..., Path]):
    folder = str(checkpoint(small_config(vocab_size=1700)))
    run = resolved(
        *("--from_checkpoint", folder, "--set", "dropout=0.2", "--set", "rope_scaling=yarn"),
    )
    assert run.config.dropout == 0.2
    assert run.config.rope_scaling is not None
    for change in ("hidden_size=64", "vocab_size=2000", "use_qk_norm=false"):
        with pytest.raises(ConfigError) as caught:
            resolved("--from_checkpoint", folder, "--set", change)
        for word in (change.split("=")[0], folder, "dropout", "rope_scaling"):
            assert word in str(caught.value)
    with pytest.raises(ConfigError, match=r"dropout is 2\.0.*below 1"):
        resolved("--from_checkpoint", folder, "--set", "dropout=2.0")


def test_a_model_contradicts_a_checkpoint(resolved: Resolve, checkpoint: Callable[..., Path]):
    folder = str(checkpoint(small_config(vocab_size=1700)))
    with pytest.raises(ConfigError, match=r"--model tiny contradicts --from_checkpoint"):
        resolved("--model", "tiny", "--from_checkpoint", folder)
    assert resolved("--model", "tiny", "--from_checkpoint", "none").weights_folder is None


def test_a_stage_that_needs_a_checkpoint_says_how_to_make_one(resolved: Resolve):
    with pytest.raises(ConfigError) as caught:
        resolved("--stage", "after")
    for word in (
        "--stage after",
        "--from_checkpoint FOLDER",
        "minimind train --stage pretrain --output_dir FOLDER",
        "--from_checkpoint none",
    ):
        assert word in str(caught.value)
    assert resolved("--stage", "after", "--from_checkpoint", "none").model_name == "tiny"


def test_a_checkpoint_that_is_none_is_named(resolved: Resolve, tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"neither a run's folder.*config\.json"):
        resolved("--from_checkpoint", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"nowhere"):
        resolved("--from_checkpoint", str(tmp_path / "nowhere"))


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(
    resolved: Resolve, checkpoint: Callable[..., Path]
):
    with pytest.raises(ConfigError, match=r"1577 tokens, the model only 1000.*vocab_size=1577"):
        resolved("--set", "vocab_size=1000")
    folder = checkpoint(small_config(vocab_size=1500), small_tokenizer())
    assert resolved("--from_checkpoint", str(folder)).config.vocab_size == 1500
    load_sample_tokenizer().save(folder.parent / "larger")
    with pytest.raises(ConfigError, match=r"larger has 1577 tokens, .* only 1500.*out --tok"):
        resolved("--from_checkpoint", str(folder), "--tokenizer", str(folder.parent / "larger"))


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
    flags = ("--learning_rate", "1e-3", *SIZE_FLAGS)

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

"""What a run takes from the checkpoint that it starts from, and what contradicts it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from resolved_runs import TINY_RATE, USUAL_RATE, Resolve, small_tokenizer
from small_models import small_config

from minimind.config.model import load_model_config
from minimind.config.sizes import default_sizes
from minimind.errors import CheckpointError, ConfigError
from minimind.run.resolve import find_tokenizer
from minimind.samples.text import load_sample_tokenizer


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
    assert run.learning_rate == USUAL_RATE


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
        *("--from_checkpoint", folder, "--set", "dropout=0.2", "--set", "rope_scaling=yarn")
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

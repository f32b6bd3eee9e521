"""Saves a model small enough for tests, as launch scripts load it."""

from __future__ import annotations

from pathlib import Path

import torch
from small_models import random_model, small_config

from minimind.model.state_dict import save_hf_folder
from minimind.samples.text import load_sample_tokenizer


def small_folder(folder: Path, seed: int = 0) -> Path:
    """Writes a Hugging Face folder with random weights, a context of 256 tokens and the sample
    tokenizer."""
    tokenizer = load_sample_tokenizer()
    config = small_config(vocab_size=tokenizer.vocab_size, max_position_embeddings=256)
    model = random_model(config, seed)
    save_hf_folder(folder, config, dict(model.named_parameters()), torch.float32)
    tokenizer.save(folder)
    return folder

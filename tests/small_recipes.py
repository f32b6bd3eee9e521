"""Gives the steps of a recipe small enough to be run often."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from minimind.pipeline.recipe_file import Pipeline

SMALL = {"seq_len": 64, "max_steps": 2, "eval_every": 2}
STEPS: list[dict[str, Any]] = [
    {"verb": "tokenizer", "data": "texts.jsonl", "vocab_size": 320},
    {
        **SMALL,
        "name": "text",
        "data": "texts.jsonl",
        "val_data": "texts.jsonl",
        "set": {"hidden_size": 32, "num_hidden_layers": 1, "train_batch_size": 4},
    },
    {**SMALL, "name": "chat", "stage": "sft", "data": "chats.jsonl", "batch_size": 4},
    {
        "name": "answers",
        "verb": "evaluate",
        "chat": True,
        "prompts": ["1 + 1?"],
        "max_new_tokens": 3,
    },
    {"name": "copy", "verb": "convert", "to": "minimind"},
]
"""The steps of a whole pipeline, of a second or so each."""

Write = Callable[..., Path]
Load = Callable[..., Pipeline]

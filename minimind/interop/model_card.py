"""Writes the README.md of a Hugging Face folder, a model card."""

from __future__ import annotations

import math
from typing import Any

import minimind
from minimind.interop.source import Source
from minimind.interop.training_record import TrainingRecord

CARD_FILE = "README.md"


def model_card(source: Source, name: str, has_code: bool) -> str:
    """Gives a model card: a YAML header that huggingface_hub reads, what the model is, what it was
    trained on and its validation loss where they are known, and how it is loaded. `has_code` says
    that the folder brings modeling code."""
    config = source.config
    code = ", trust_remote_code=True" if has_code else ""
    experts = (
        f", {config.num_experts} experts a layer of which {config.num_experts_per_tok} compute a "
        f"token ({config.num_active_parameters:,} parameters a token)"
        if config.num_experts
        else ""
    )
    return f"""---
library_name: transformers
pipeline_tag: text-generation
license: other
license_name: not-stated-yet
tags:
- minimind
---

# {name}

A language model of {config.num_parameters:,} parameters ({config.num_hidden_layers} layers, hidden
size {config.hidden_size}, {config.vocab_size:,} tokens{experts}), trained with MiniMind.

**License: not stated yet.** Before you publish the model, put its license here and into the header
of this file; it depends on the data that the model was trained on.

## Training

{_training(source.training)}

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # of this file, or the model's name on the Hub
model = AutoModelForCausalLM.from_pretrained(folder{code})
tokenizer = AutoTokenizer.from_pretrained(folder)
```

A text begins with the tokens that `tokenizer(text)` gives; a conversation is rendered by
`tokenizer.apply_chat_template`.

## Limits

A model of this size makes up facts, and repeats what is wrong or offensive in its data. It was not
tested for any use.

This folder was written by MiniMind {minimind.__version__}.
"""


def _training(record: TrainingRecord | None) -> str:
    if record is None:
        return "Not known: the model was not converted from a run's checkpoint."
    rows: list[list[Any]] = []
    while record is not None:
        data = ", ".join(f"`{name}`" for name in record.data) or "MiniMind's sample data"
        loss = record.val_loss
        known = loss is not None and math.isfinite(loss)
        measured = f"{loss:.4f}" if known else "not measured"
        row = [record.stage, data, f"{record.steps:,}", f"{record.tokens:,}"]
        batch = f"{record.rows_per_step} x {record.row_length}"
        rows.insert(0, [*row, batch, f"{record.learning_rate:g}", measured])
        record = record.earlier
    head = ["stage", "data", "steps", "tokens", "rows x tokens", "learning rate", "validation loss"]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

"""Measures the perplexity of a model on a data file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from minimind.data.chat_format import CHAT
from minimind.data.jsonl import OnBadRow
from minimind.data.loader import EvalLoader, WeightedSource
from minimind.data.text_format import TEXT
from minimind.data.token_cache import build_token_cache
from minimind.data.tokenizer import Tokenizer
from minimind.errors import ConfigError, DataError
from minimind.evaluation.scoring import batch_log_probs
from minimind.model.transformer import Transformer
from minimind.types import IGNORE_INDEX

_BATCH_ROWS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Perplexity:
    data: str
    format: str
    loss: float
    """Mean cross-entropy in nats per target token."""
    perplexity: float
    bits_per_byte: float
    """Bits per byte of the targets' text, which models with different tokenizers can be compared
    by."""
    num_tokens: int
    num_documents: int


FORMATS = {data_format.name: data_format for data_format in (TEXT, CHAT)}
"""The data formats whose perplexity can be measured, by name."""


def measure_perplexity(
    model: Transformer,
    tokenizer: Tokenizer,
    path: str | Path,
    *,
    format: str = "text",
    seq_len: int = 1024,
    max_rows: int = 0,
    on_bad_row: OnBadRow = "stop",
    progress: bool = False,
) -> Perplexity:
    """Measures the perplexity over all targets of the file's documents. `max_rows` above 0 measures
    that many packed rows only, drawn at random. Raises DataError where the file cannot be used or
    holds no target, ConfigError for a format outside FORMATS."""
    if format not in FORMATS:
        raise ConfigError(f"format is {format!r}; it must be one of {', '.join(FORMATS)}")
    cache = build_token_cache(
        path, tokenizer, FORMATS[format], on_bad_row=on_bad_row, progress=progress
    )
    loader = EvalLoader(
        [WeightedSource(cache)],
        seq_len=min(seq_len, model.config.max_position_embeddings),
        micro_batch=_BATCH_ROWS,
        pad_id=tokenizer.pad_id,
        max_rows=max_rows,
    )
    device = model.lm_head.weight.device
    total = torch.zeros((), dtype=torch.float64, device=device)
    num_tokens = num_bytes = 0
    disable = None if progress else True
    for batch in tqdm(loader, desc=f"perplexity of {Path(path).name}", disable=disable):
        targets = batch.labels_BT[batch.labels_BT != IGNORE_INDEX]
        num_tokens += batch.num_targets
        num_bytes += len(tokenizer.token_bytes(targets.tolist()))
        total -= batch_log_probs(model, batch.to(device)).double().sum()
    if not num_tokens:
        raise DataError(f"{path}: holds nothing that a model is to predict")
    loss = total.item() / num_tokens
    return Perplexity(
        data=str(path),
        format=format,
        loss=loss,
        # Where exp(loss) overflows a float, the loss is the figure to read.
        perplexity=math.exp(min(loss, 700.0)),
        bits_per_byte=total.item() / math.log(2) / max(num_bytes, 1),
        num_tokens=num_tokens,
        num_documents=cache.num_documents,
    )

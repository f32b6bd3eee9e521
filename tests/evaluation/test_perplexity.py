"""Perplexity against the fp64 form of the model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch.nn.functional as F
from small_models import random_model, reference_logits, small_config
from torch import tensor

from minimind.data.sample_text import load_sample_tokenizer
from minimind.errors import DataError
from minimind.evaluation.perplexity import measure_perplexity

TEXTS = ["Count from 1 to 3: 1, 2, 3.", "从1数到3：1，2，3。", "6 + 9 = 15"]


def write_texts(path: Path, texts: list[str]) -> Path:
    rows = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def test_it_is_the_mean_over_all_targets(tmp_path: Path) -> None:
    tokenizer = load_sample_tokenizer()
    model = random_model(small_config(vocab_size=tokenizer.vocab_size)).eval()
    found = measure_perplexity(model, tokenizer, write_texts(tmp_path / "a.jsonl", TEXTS))
    total, count = 0.0, 0
    for text in TEXTS:
        ids = [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]
        logits = reference_logits(model, ids)[:-1]
        total += F.cross_entropy(logits, tensor(ids[1:]), reduction="sum").item()
        count += len(ids) - 1
    assert found.num_tokens == count
    assert found.num_documents == len(TEXTS)
    assert found.loss == pytest.approx(total / count, rel=1e-4)
    assert found.perplexity == pytest.approx(math.exp(total / count), rel=1e-3)
    num_bytes = sum(len(text.encode()) for text in TEXTS)
    assert found.bits_per_byte == pytest.approx(total / math.log(2) / num_bytes, rel=1e-4)


def test_a_bad_row_stops_it(tmp_path: Path) -> None:
    tokenizer = load_sample_tokenizer()
    model = random_model(small_config(vocab_size=tokenizer.vocab_size))
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "good"}\n{"txt": 1}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"bad\.jsonl:2: "):
        measure_perplexity(model, tokenizer, path)
    assert measure_perplexity(model, tokenizer, path, on_bad_row="skip").num_documents == 1

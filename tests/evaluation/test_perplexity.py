"""Perplexity against the fp64 form of the model."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small_models import random_model, reference_logits, small_config
from torch import tensor

from minimind.errors import DataError
from minimind.evaluation.perplexity import measure_perplexity
from minimind.model.state_dict import save_hf_folder
from minimind.samples.text import load_sample_tokenizer, text_documents

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
        ids = [*tokenizer.encode_document(text), tokenizer.eos_id]
        logits = reference_logits(model, ids)[:-1]
        total += F.cross_entropy(logits, tensor(ids[1:]), reduction="sum").item()
        count += len(ids) - 1
    assert found.num_tokens == count
    assert found.num_documents == len(TEXTS)
    assert found.loss == pytest.approx(total / count, rel=1e-4)
    assert found.perplexity == pytest.approx(math.exp(total / count), rel=1e-3)
    num_bytes = sum(len(text.encode()) for text in TEXTS)
    assert found.bits_per_byte == pytest.approx(total / math.log(2) / num_bytes, rel=1e-4)


def test_transformers_finds_the_same_for_the_same_texts(tmp_path: Path) -> None:
    """Texts, not ids: what is exported reads a document as training did."""
    transformers = pytest.importorskip("transformers")
    tokenizer = load_sample_tokenizer()
    model = random_model(small_config(vocab_size=tokenizer.vocab_size)).eval()
    folder = tmp_path / "model"
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    save_hf_folder(folder, model.config, weights, torch.float32)
    tokenizer.save(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    read = transformers.AutoTokenizer.from_pretrained(folder)
    texts = list(itertools.islice((text for text, _ in text_documents(seed=3)), 12))

    @torch.no_grad()
    def measure(**options: bool) -> float:
        total, count = 0.0, 0
        for text in texts:
            ids = read(text + read.eos_token, return_tensors="pt", **options)["input_ids"]
            total += theirs(ids, labels=ids).loss.item() * (ids.numel() - 1)
            count += ids.numel() - 1
        return total / count

    ours = measure_perplexity(model, tokenizer, write_texts(tmp_path / "a.jsonl", texts))
    assert measure() == pytest.approx(ours.loss, abs=1e-3)
    assert measure(add_special_tokens=False) != pytest.approx(ours.loss, abs=1e-3)


def test_a_bad_row_stops_it(tmp_path: Path) -> None:
    tokenizer = load_sample_tokenizer()
    model = random_model(small_config(vocab_size=tokenizer.vocab_size))
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "good"}\n{"txt": 1}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"bad\.jsonl:2: "):
        measure_perplexity(model, tokenizer, path)
    assert measure_perplexity(model, tokenizer, path, on_bad_row="skip").num_documents == 1

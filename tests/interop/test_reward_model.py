"""A Hugging Face reward model gives transformers' own score, and what is none is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from scored_rollouts import rollout

from minimind.errors import ConfigError
from minimind.interop import reward_model as module
from minimind.interop.reward_model import reward_model
from minimind.rewards.scorer import Scorer
from minimind.samples.text import load_sample_tokenizer

transformers = pytest.importorskip("transformers")

ONE = rollout("<think>\n6 + 9 = 15\n</think>\n\nIt is 15.", "What is 6 plus 9?")


def save(folder: Path, kind: str = "LlamaForSequenceClassification", **config: Any) -> Path:
    tokenizer = load_sample_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
    torch.manual_seed(0)
    options = {"num_labels": 1, "vocab_size": tokenizer.vocab_size, **sizes, **heads, **config}
    getattr(transformers, kind)(transformers.LlamaConfig(**options)).save_pretrained(folder)
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save(tmp_path_factory.mktemp("reward")))


def score_of_text(folder: str, text: str, most: int = 64, *, is_chat: bool = True) -> float:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    # A rendered chat brings its special tokens; what stands before a text is the tokenizer's.
    ids = tokenizer(text, add_special_tokens=not is_chat)["input_ids"][-most:]
    with torch.no_grad():
        return model(torch.tensor([ids])).logits.item()


def test_it_scores_the_rendered_chat(folder: str) -> None:
    start, end = "<|im_start|>", "<|im_end|>\n"
    asked = f"{start}user\nWhat is 6 plus 9?{end}{start}assistant\n"
    thought = f"{asked}<think>\n6 + 9 = 15\n</think>\n\nIt is 15.{end}"
    assert reward_model(ONE, folder) == pytest.approx(score_of_text(folder, thought))
    plain = f"{asked}<think>\n\n</think>\n\nIt is 15.{end}"
    scored = reward_model(ONE, folder, part="answer")
    assert scored == pytest.approx(score_of_text(folder, plain))
    assert scored != pytest.approx(reward_model(ONE, folder), rel=1e-4)
    short = reward_model(ONE, folder, max_tokens=5)
    assert short == pytest.approx(score_of_text(folder, thought, most=5))


def test_a_chat_longer_than_the_context_loses_its_beginning(folder: str) -> None:
    long = dataclasses.replace(ONE, messages=[{"role": "user", "content": "word " * 500}])
    other = dataclasses.replace(ONE, messages=[{"role": "user", "content": "other word " * 500}])
    assert reward_model(long, folder, max_tokens=10) == reward_model(other, folder, max_tokens=10)
    assert reward_model(long, folder) == reward_model(long, folder, max_tokens=64)


def test_a_model_without_a_chat_template_reads_lines(tmp_path: Path) -> None:
    folder = save(tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    text = "user: What is 6 plus 9?\nassistant: It is 15."
    scored = reward_model(ONE, str(folder), part="answer")
    assert scored == pytest.approx(score_of_text(str(folder), text, is_chat=False))


def test_earlier_turns_of_the_policy_are_part_of_the_chat(folder: str) -> None:
    turns = [
        {"role": "assistant", "content": "Let me look."},
        {"role": "tool", "content": "15"},
        *ONE.turns,
    ]
    more = dataclasses.replace(ONE, turns=turns)
    assert reward_model(more, folder) != pytest.approx(reward_model(ONE, folder), rel=1e-4)


def test_it_is_loaded_once(folder: str) -> None:
    module._load.cache_clear()
    for _ in range(3):
        reward_model(ONE, folder)
    assert module._load.cache_info().misses == 1


def test_as_a_reward_in_a_worker(folder: str) -> None:
    with Scorer({f"reward_model(folder={folder!r})": 2.0}, num_workers=1, timeout_s=60) as scorer:
        scorer.check()
        (score,) = scorer.score([ONE])
    assert scorer.reward_names == ["reward_model"]
    assert score.total == pytest.approx(2 * reward_model(ONE, folder), rel=1e-4)


def test_what_is_no_reward_model_is_refused(tmp_path: Path) -> None:
    two = save(tmp_path / "two", num_labels=2)
    language = save(tmp_path / "language", "LlamaForCausalLM")
    empty = tmp_path / "empty"
    empty.mkdir()
    code = tmp_path / "code"
    code.mkdir()
    (code / "config.json").write_text(
        json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}, "num_labels": 1})
    )
    (code / "own.py").write_text("raise SystemExit('code of a model was run')")
    for folder, message in (
        (two, "it has 2 labels"),
        (language, r"its weights lack score\.weight"),
        (empty, "it has no config.json"),
        (code, "cannot be used as a reward model"),
    ):
        with pytest.raises(ConfigError, match=message):
            reward_model(ONE, str(folder))
    with pytest.raises(ConfigError, match="part='x'"):
        reward_model(ONE, str(two), part="x")  # type: ignore[arg-type]

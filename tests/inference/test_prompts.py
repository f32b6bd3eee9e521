from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_models import random_model, small_config

from minimind.inference.prompts import answer_lines, choose_prompts
from minimind.model.transformer import Transformer
from minimind.samples.text import load_sample_tokenizer

TOKENIZER = load_sample_tokenizer()


@pytest.fixture(scope="module")
def model() -> Transformer:
    return random_model(small_config(vocab_size=TOKENIZER.vocab_size)).eval()


def write(path: Path, rows: list[dict]) -> list[str]:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return [str(path)]


def test_prompts_are_given_or_come_from_the_data(tmp_path: Path):
    assert choose_prompts(["a"], ["nowhere.jsonl"], is_chat=False) == ["a"]
    texts = write(tmp_path / "text.jsonl", [{"text": f"{n} " + "x" * 50} for n in range(9)])
    prompts = choose_prompts([], texts, is_chat=False)
    assert prompts == [f"{n} " + "x" * 22 for n in range(4)]


def test_prompts_of_conversations_are_short_first_questions(tmp_path: Path):
    system = {"role": "system", "content": "s"}
    questions = ["one?", "x" * 500, "two?", None, "three?"]
    chats = [
        [system, {"role": "user", "content": q}, {"role": "user", "content": "later"}]
        for q in questions
    ]
    rows = [{"conversations": chat} for chat in chats] + [
        {"other": 1},
        {"conversations": "no list"},
    ]
    paths = write(tmp_path / "chat.jsonl", rows)
    assert choose_prompts([], paths, is_chat=True) == ["one?", "two?", "three?"]
    pairs = [{"chosen": chat, "rejected": []} for chat in chats]
    paths = write(tmp_path / "pairs.jsonl", pairs)
    prompts = choose_prompts([], paths, is_chat=True, kind="preference")
    assert prompts == ["one?", "two?", "three?"]
    alpaca = [{"instruction": "Add.", "input": "1+1", "output": "2"}]
    paths = write(tmp_path / "alpaca.jsonl", alpaca)
    assert choose_prompts([], paths, is_chat=True) == ["Add.\n1+1"]


@pytest.mark.parametrize("is_chat", [False, True])
def test_samples_show_prompt_and_continuation(model: Transformer, is_chat: bool):
    seen: list[torch.Tensor] = []
    hook = model.embed_tokens.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    (text,) = answer_lines(model, TOKENIZER, ["7 + 5 ="], is_chat=is_chat)
    hook.remove()
    assert text.startswith("7 + 5 = → ")
    prompt = TOKENIZER.decode(seen[0].tolist(), skip_special=False)
    if is_chat:
        assert prompt == (
            "<|im_start|>user\n7 + 5 =<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
        )
    else:
        assert prompt == "<|im_start|>7 + 5 ="

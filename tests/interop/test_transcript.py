"""One model from training to every program that runs it and back, by the commands of
docs/formats.md; `-s` shows them with what they print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from llama_cpp_server import LlamaCpp, serving
from training_runs import read_losses
from typed_commands import Commands

pytest.importorskip("xllamacpp", reason="needs xllamacpp, which holds llama.cpp")
pytestmark = pytest.mark.slow

QUESTIONS = (
    "What is the river of Lumor called?",
    "塔恩的房子是什么颜色？",
    "How much is 7 plus 5?",
)
NUM_TOKENS = 24
BATCH = ("--ds_config", "zero2.json", "--seq_len", "128", "--batch_size", "16")
BRIEFLY = (*BATCH, "--eval_every", "0", "--save_every", "0", "--set", "log_every=50")

ASK = """
import json
import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

folder, num_tokens, *questions = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
for question in questions:
    turns = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    num_prompt = prompt["input_ids"].shape[1]
    ids = model.generate(**prompt, do_sample=False, max_new_tokens=int(num_tokens))[0].tolist()
    text = tokenizer.decode(ids[num_prompt:], skip_special_tokens=True)
    print(json.dumps({"prompt": ids[:num_prompt], "tokens": ids[num_prompt:], "text": text}))
assert not any(name.startswith("minimind") for name in sys.modules)
"""
"""A script that knows transformers and nothing of this project."""


def ask_llama_cpp(server: LlamaCpp, question: str) -> dict[str, Any]:
    """Asks llama.cpp greedily; it renders the chat by the file's own template."""
    turns = [{"role": "user", "content": question}]
    kwargs = {"enable_thinking": False}
    text = server.ask("/apply-template", messages=turns, chat_template_kwargs=kwargs)["prompt"]
    body = {"content": text, "add_special": True, "parse_special": True}
    prompt = server.ask("/tokenize", **body)["tokens"]
    answer = server.complete(prompt, NUM_TOKENS)
    return {"prompt": prompt, "tokens": answer["tokens"], "text": answer["content"]}


def test_a_model_goes_through_every_program_and_is_trained_on(tmp_path: Path) -> None:
    commands = Commands(tmp_path)
    commands.minimind("train", *BRIEFLY, "--max_steps", "100", "--output_dir", "text")
    commands.minimind(
        *("train", *BRIEFLY, "--max_steps", "60", "--stage", "sft"),
        *("--from_checkpoint", "text", "--output_dir", "chat"),
    )

    (tmp_path / "elsewhere").mkdir()
    commands.minimind("convert", "--input", "chat", "--to", "hf", "--output", "elsewhere/model")
    said = commands.plain(
        *("ask.py", "model", str(NUM_TOKENS), *QUESTIONS), code=ASK, folder="elsewhere"
    )
    by_transformers = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert len(by_transformers) == len(QUESTIONS)

    commands.minimind("convert", "--input", "chat", "--to", "gguf", "--output", "model.gguf")
    with serving(tmp_path / "model.gguf") as server:
        for question, theirs in zip(QUESTIONS, by_transformers, strict=True):
            found = ask_llama_cpp(server, question)
            print("llama.cpp:", json.dumps(found, ensure_ascii=False))  # noqa: T201
            assert (found["prompt"], found["tokens"]) == (theirs["prompt"], theirs["tokens"])

    commands.minimind("convert", "--input", "model.gguf", "--to", "minimind", "--output", "back")
    greedy = ("--set", "temperature=0", "--set", f"max_new_tokens={NUM_TOKENS}", "--dtype", "fp32")
    for question, theirs in zip(QUESTIONS, by_transformers, strict=True):
        said = commands.minimind("chat", "--checkpoint", "back", *greedy, "--ask", question)
        assert said.removeprefix(f"> {question}\n").strip() == theirs["text"].strip()
    for source in ("chat", "back"):
        commands.minimind(
            *("train", *BRIEFLY, "--max_steps", "10", "--stage", "sft"),
            *("--from_checkpoint", source, "--output_dir", f"on-from-{source}"),
        )
    assert read_losses(tmp_path / "on-from-back") == read_losses(tmp_path / "on-from-chat")

"""GGUF files in llama.cpp itself: tokens, log-probabilities, and texts through chat templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_models import MODELS, gguf_file, model_folder
from llama_cpp_server import serving
from small_models import random_documents

from minimind.config.model import PRESETS, ModelConfig, load_model_config
from minimind.data.chat_template import render_chat
from minimind.data.tokenizer import Tokenizer
from minimind.interop import checks
from minimind.interop.conversion import convert
from minimind.interop.options import ConvertOptions
from minimind.interop.readers import open_source
from minimind.model.state_dict import save_hf_folder
from minimind.model.transformer import Transformer
from minimind.samples.text import load_sample_tokenizer

pytest.importorskip("xllamacpp", reason="needs xllamacpp, which holds llama.cpp")
pytestmark = pytest.mark.slow

SIZES: dict[str, dict[str, Any]] = {
    "minimind2-small": {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 6},
    "minimind2": {"hidden_size": 96, "num_hidden_layers": 2, "head_dim": 48},
    "minimind2-moe": {"hidden_size": 64, "num_hidden_layers": 2},
    "minimind3": {"hidden_size": 128, "num_hidden_layers": 3, "head_dim": 24},
    "minimind3-moe": {"hidden_size": 64, "num_hidden_layers": 2},
    "tiny": {},
}
"""A small model of each preset's shape."""


def log_probs(folder: Path, ids: list[int], monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Computes log-probabilities [T, V] in fp32: by transformers, or by our own model where
    transformers has no class for it."""
    if open_source(folder).config.num_experts and not open_source(folder).config.use_qk_norm:
        monkeypatch.setattr(checks, "fixed_prompts", lambda config: [ids])
        return checks.logits_of(open_source(folder)).log_softmax(-1)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].log_softmax(-1)


def compare(folder: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vocab = load_sample_tokenizer().vocab_size
    with serving(path) as server:
        for prompt in random_documents([1, 9, 150], vocab - 36):
            prompt = [36 + id for id in prompt]
            tokens = server.complete(prompt, 16)["tokens"]
            ours = log_probs(folder, prompt + tokens, monkeypatch)[len(prompt) - 1 : -1]
            assert tokens == ours.argmax(-1).tolist()
            # The server gives none for a token that does not end a character.
            for place in range(0, len(tokens), 5):
                answer = server.complete(prompt + tokens[:place], 1, num_probs=vocab)
                for found in answer.get("completion_probabilities", []):
                    for one in found["top_logprobs"]:
                        assert abs(one["logprob"] - ours[place, one["id"]]) < 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_computes_every_architecture(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = gguf_file(tmp_path, name)
    compare(tmp_path / name, path, monkeypatch)


@pytest.mark.parametrize("preset", PRESETS)
def test_llama_cpp_computes_every_preset(
    tmp_path: Path, preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_sample_tokenizer()
    config: ModelConfig = load_model_config(
        preset, {"vocab_size": tokenizer.vocab_size} | SIZES[preset]
    )
    model, folder, path = Transformer(config), tmp_path / "model", tmp_path / "model.gguf"
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if parameter.dim() == 1 else 0.1 * noise)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    save_hf_folder(folder, config, weights, torch.float32)
    tokenizer.save(folder)
    convert(folder, "gguf", path, ConvertOptions())
    compare(folder, path, monkeypatch)


@pytest.mark.parametrize(
    ("quantize", "largest"), [("f16", 0.005), ("bf16", 0.03), ("q8_0", 0.1), ("q4_0", 0.1)]
)
def test_llama_cpp_reads_every_type(tmp_path: Path, quantize: str, largest: float) -> None:
    """It computes with the rounded weights that are read back here. It rounds activations too, to
    16 or 8 bits."""
    path, back = gguf_file(tmp_path, "qwen3", quantize), tmp_path / "back"
    convert(path, "hf", back, ConvertOptions(dtype="fp32"))
    vocab = load_sample_tokenizer().vocab_size
    errors: list[float] = []
    with serving(path) as server, pytest.MonkeyPatch.context() as patch:
        for prompt in random_documents([3] * 6, vocab):
            ours = log_probs(back, prompt, patch)[-1]
            answer = server.complete(prompt, 1, num_probs=vocab)
            for found in answer.get("completion_probabilities", []):
                errors += [abs(o["logprob"] - float(ours[o["id"]])) for o in found["top_logprobs"]]
    assert errors
    assert max(errors) < largest


TEXTS = [
    "你好，世界！",
    "it's  12 345\n\n\tdone ",
    " leading",
    "a<|im_end|>b",
    "x<think>y",
    "🦆é́",
    "",
]


def test_texts_become_the_same_tokens(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(model_folder(tmp_path / "m", "qwen3"))
    path = gguf_file(tmp_path, "qwen3")
    with serving(path) as server:
        for text in TEXTS:
            found = server.ask("/tokenize", content=text, add_special=True, parse_special=True)
            rendered = [*tokenizer.document_start, *tokenizer.encode_rendered(text)]
            assert found["tokens"] == rendered, text
            if "<" not in text:
                assert found["tokens"] == tokenizer.encode_document(text)


TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "adds",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}},
            "required": ["a"],
        },
    },
}
CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
CHATS: list[tuple[list[dict[str, Any]], list[Any] | None]] = [
    ([{"role": "user", "content": "你好"}], None),
    (
        [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "Hi <b>"},
            {"role": "assistant", "content": "Yes", "reasoning_content": "hm"},
            {"role": "user", "content": "more"},
        ],
        None,
    ),
    ([{"role": "user", "content": "1+1"}], [TOOL]),
    (
        [
            {"role": "user", "content": "1+1"},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "2", "tool_call_id": "1"},
        ],
        [TOOL],
    ),
]


def test_chats_become_the_same_text_and_begin_with_one_bos(tmp_path: Path) -> None:
    """llama.cpp leaves out the template's bos and puts its own before the prompt."""
    tokenizer, path = load_sample_tokenizer(), gguf_file(tmp_path, "qwen3")
    assert tokenizer.chat_template is not None
    with serving(path) as server:
        for messages, tools in CHATS:
            for thinking in (False, True):
                body: dict[str, Any] = {"messages": messages}
                body["chat_template_kwargs"] = {"enable_thinking": thinking}
                if tools:
                    body["tools"] = tools
                text = server.ask("/apply-template", **body)["prompt"]
                ours = render_chat(tokenizer.chat_template, messages, tools, True, thinking)
                assert "<|im_start|>" + text == ours
                found = server.ask("/tokenize", content=text, add_special=True, parse_special=True)
                assert found["tokens"] == tokenizer.encode_rendered(ours)

"""GGUF files of others: what is read, and what is refused by its name."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from gguf_models import Change, rewrite, setting

from minimind.data.tokenizer import Tokenizer
from minimind.errors import CheckpointError
from minimind.interop.gguf import reader
from minimind.interop.options import ConvertOptions
from minimind.interop.readers import open_source


def without(*names: str) -> Change:
    def change(fields: dict[str, Any]) -> None:
        for name in names:
            del fields[name]

    return change


def test_a_file_without_our_own_fields_is_read(qwen3_file: Path) -> None:
    """As llama.cpp's converter writes it."""
    ours = ("minimind.config", "tokenizer.huggingface.json", "qwen3.vocab_size")
    rest = ("qwen3.rope.dimension_count", "qwen3.attention.value_length")
    changed = open_source(rewrite(qwen3_file, without(*ours, *rest)))
    source = open_source(qwen3_file)
    assert changed.config.norm_cast_before_weight
    assert changed.config.head_dim == source.config.head_dim
    for name in source.tensors:
        assert torch.equal(changed.tensors[name], source.tensors[name])
    assert source.tokenizer is not None
    assert changed.tokenizer is not None
    before, after = Tokenizer.load(source.tokenizer), Tokenizer.load(changed.tokenizer)
    text = "你好, it's 12 345  tokens\n\n\tof <|im_end|> text <think> 🦆"
    assert after.encode(text) == before.encode(text)
    assert after.encode_document(text) == before.encode_document(text)
    assert after.encode_rendered(text) == before.encode_rendered(text)
    assert after.decode(after.encode(text)) == text
    assert after.special_ids == before.special_ids
    assert after.chat_template == before.chat_template


def test_a_file_that_adds_no_bos_begins_with_the_text(qwen3_file: Path) -> None:
    source = open_source(rewrite(qwen3_file, setting(tokenizer__ggml__add_bos_token=False)))
    assert source.tokenizer is not None
    assert Tokenizer.load(source.tokenizer).document_start == []


def test_the_temporary_tokenizer_goes_with_the_source(qwen3_file: Path) -> None:
    source = open_source(qwen3_file)
    folder = source.tokenizer
    assert folder is not None
    assert folder.is_dir()
    del source
    assert not folder.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (setting(general__architecture="gemma3"), "architecture 'gemma3'; those of models here"),
        (without("qwen3.block_count"), "the field block_count is missing"),
        (without("qwen3.attention.layer_norm_rms_epsilon"), "rms_epsilon is missing"),
        (setting(qwen3__attention__sliding_window=128), "sliding_window is 128; models here have"),
        (setting(qwen3__attention__head_count=[4, 2]), r"num_attention_heads is \[4, 2\]"),
        (setting(qwen3__rope__dimension_count=6), "rope.dimension_count is 6, where 12"),
        (setting(qwen3__rope__scaling__type="longrope"), "type is 'longrope'"),
        (setting(qwen3__block_count=1), "no blk.1"),
        (setting(qwen3__block_count=3), "blk.2.attn_norm.weight is missing"),
        (setting(qwen3__feed_forward_length=65), r"gate_proj.weight is \[64, 32\]"),
        (setting(tokenizer__ggml__model="llama"), "a tokenizer of the kind 'llama'"),
        (setting(tokenizer__ggml__eos_token_id=10**6), "eos_token_id is 1000000, of"),
        (setting(tokenizer__huggingface__json="{}"), "is not a tokenizer.json"),
        (setting(minimind__config="["), "minimind.config is not a JSON object"),
        (setting(split__count=2), "llama-gguf-split --merge"),
    ],
)
def test_what_models_here_do_not_have_is_named(
    qwen3_file: Path, change: Change, message: str
) -> None:
    path = rewrite(qwen3_file, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_source(path)
    assert str(path) in str(caught.value)


def test_an_unknown_split_of_texts_is_named(qwen3_file: Path) -> None:
    def change(fields: dict[str, Any]) -> None:
        del fields["tokenizer.huggingface.json"]
        fields["tokenizer.ggml.pre"] = "tekken"

    with pytest.raises(CheckpointError, match="'tekken'; known: gpt-2, qwen2"):
        open_source(rewrite(qwen3_file, change))


def test_tensors_that_models_here_do_not_have_are_named(qwen3_file: Path) -> None:
    extra = {"blk.0.attn_q.bias": torch.zeros(48), "rope_freqs.weight": torch.ones(6)}
    with pytest.raises(CheckpointError, match=r"have no blk.0.attn_q.bias, rope_freqs.weight"):
        open_source(rewrite(qwen3_file, setting(), extra))


@pytest.mark.parametrize("share", [0.0001, 0.02, 0.3, 0.9, 0.9999])
@pytest.mark.faults("a GGUF file cut short", "refused")
def test_a_truncated_file_is_refused(qwen3_file: Path, tmp_path: Path, share: float) -> None:
    path, content = tmp_path / "a.gguf", qwen3_file.read_bytes()
    path.write_bytes(content[: max(4, int(len(content) * share))])
    with pytest.raises(CheckpointError, match="damaged or truncated GGUF file"):
        open_source(path)


def test_weights_that_are_no_numbers_are_refused(qwen3_file: Path, tmp_path: Path) -> None:
    tensors = gguf.GGUFReader(qwen3_file).tensors
    tensor = next(t for t in tensors if t.name == "blk.1.ffn_up.weight")
    path, content = tmp_path / "a.gguf", bytearray(qwen3_file.read_bytes())
    content[tensor.data_offset : tensor.data_offset + 4] = b"\xff\xff\xff\x7f"
    path.write_bytes(content)
    source = open_source(path)
    with pytest.raises(CheckpointError, match=r"layers.1.mlp.up_proj.weight holds 1 values"):
        _ = source.tensors["model.layers.1.mlp.up_proj.weight"]


def test_what_is_no_gguf_file_is_left_to_other_readers(qwen3_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"PK\x03\x04")
    assert not reader.detect(file)
    assert not reader.detect(tmp_path)
    shutil.copy(qwen3_file, tmp_path / "any.bin")
    assert reader.detect(tmp_path / "any.bin")
    assert reader.open_file(tmp_path / "any.bin", ConvertOptions()).config.use_qk_norm

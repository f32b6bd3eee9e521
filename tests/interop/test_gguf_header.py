"""Headers of GGUF files that announce more than they hold: refused before the library counts."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from gguf_models import rewrite, setting

from minimind.data.tokenizer import Tokenizer
from minimind.errors import CheckpointError, ConfigError
from minimind.interop.gguf import encoding, reader
from minimind.interop.gguf.header import check_header
from minimind.interop.gguf.tokenizer import to_fields
from minimind.interop.options import ConvertOptions
from minimind.interop.readers import open_source
from minimind.samples.text import load_sample_tokenizer

UINT8, UINT32, STRING, ARRAY, UINT64 = 0, 4, 8, 9, 10
HUGE = 1 << 60


def u32(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def u64(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}Q", *numbers)


def text(content: bytes) -> bytes:
    return u64(len(content)) + content


def header(rest: bytes, tensors: int = 0, fields: int = 1, version: int = 3) -> bytes:
    return b"GGUF" + u32(version) + u64(tensors, fields) + rest


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header(text(b"a") + u32(ARRAY, UINT8) + u64(HUGE)), "arrays of more than"),
        (header(text(b"a") + u32(ARRAY, STRING) + u64(HUGE)), "arrays of more than"),
        (header(text(b"a") + u32(ARRAY, UINT64) + u64(1000)), "longer than the file"),
        (header(text(b"a") + u32(ARRAY, STRING) + u64(1000)), "longer than the file"),
        (header(text(b"a") + u32(ARRAY, ARRAY) + u64(1) + u32(ARRAY)), "an array of arrays"),
        (header(text(b"a") + u32(STRING) + u64(HUGE)), "longer than the file"),
        (header(text(b"a") + u32(UINT32)), "longer than the file"),
        (header(u64(HUGE)), "longer than the file"),
        (header(text(b"a") + u32(13)), "unknown type 13"),
        (header(b"", fields=HUGE), "fields; 131,072 are the most"),
        (header(b"", fields=1000), "longer than the file"),
        (header(b"", fields=0, tensors=HUGE), "tensors; 131,072 are the most"),
        (header(text(b"w") + u32(1 << 31), fields=0, tensors=1), "2,147,483,648 dimensions"),
        (header(text(b"w") + u32(2) + u64(1), fields=0, tensors=1), "longer than the file"),
        (header(b"", version=1), "version 1; known"),
        (header(b"", version=3 << 24), "version 50331648; known"),
        (b"GGUF\3", "longer than the file"),
    ],
)
@pytest.mark.faults("a GGUF header that announces more than there is", "refused before it is read")
def test_a_header_that_cannot_be_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"a\.gguf: a damaged .*{message}"):
        open_source(path)


def test_the_elements_of_all_arrays_are_counted_together(tmp_path: Path) -> None:
    half = (1 << 21) + 1
    field = text(b"a") + u32(ARRAY, UINT8) + u64(half) + bytes(half)
    path = tmp_path / "a.gguf"
    path.write_bytes(header(field))
    check_header(path)
    path.write_bytes(header(2 * field, fields=2))
    with pytest.raises(CheckpointError, match="arrays of more than"):
        check_header(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("split__count", "two"),
        ("tokenizer__ggml__tokens", 7),
        ("tokenizer__ggml__token_type", "x"),
        ("tokenizer__ggml__eos_token_id", "end"),
        ("tokenizer__huggingface__json", "[]"),
        ("tokenizer__huggingface__json", '{"model": {"vocab": []}}'),
        ("tokenizer__huggingface__json", "[" * 100_000),
        ("tokenizer__chat_template", 3),
        ("minimind__config", 7),
        ("minimind__config", "[" * 100_000),
        ("qwen3__embedding_length", "wide"),
        ("qwen3__attention__head_count", True),
        ("qwen3__rope__freq_base", "high"),
        ("qwen3__rope__scaling__type", ["yarn"]),
    ],
)
def test_a_field_of_another_type_is_no_traceback(
    qwen3_file: Path, field: str, value: object
) -> None:
    path = rewrite(qwen3_file, setting(**{field: value}))
    with pytest.raises(CheckpointError, match=r"changed\.gguf"):
        open_source(path)


def test_weights_of_a_type_that_the_library_does_not_read_are_named(
    qwen3_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(qwen3_file)

    def dequantize(*_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(encoding.import_gguf().quants, "dequantize", dequantize)
    monkeypatch.setattr(encoding, "_DTYPES", {})
    with pytest.raises(CheckpointError, match="does not read weights of the type f32"):
        _ = source.tensors["model.layers.0.mlp.up_proj.weight"]


@pytest.mark.parametrize("told", [{"settings": {"rope_theta": 1e4}}, {"base": Path("elsewhere")}])
def test_options_that_would_do_nothing_are_refused(qwen3_file: Path, told: dict) -> None:
    with pytest.raises(ConfigError, match="is for weights that do not say it"):
        reader.open_file(qwen3_file, ConvertOptions(**told))


def test_a_tokenizer_without_merges_is_refused() -> None:
    spec, config = load_sample_tokenizer().contents()
    plain = Tokenizer({**spec, "model": {**spec["model"], "merges": []}}, config, "plain")
    with pytest.raises(ConfigError, match="the tokenizer plain merges no bytes"):
        to_fields(plain, plain.vocab_size)

"""Writes a GGUF file tensor by tensor, and checks it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

import minimind
from minimind.data.tokenizer import Tokenizer
from minimind.errors import ConfigError
from minimind.interop.checks import Difference, logits_difference, weights_difference
from minimind.interop.gguf import architecture, encoding, reader
from minimind.interop.gguf.modelfile import modelfile, modelfile_path
from minimind.interop.gguf.tensors import GgufTensor, gguf_tensors
from minimind.interop.gguf.tokenizer import to_fields as tokenizer_fields
from minimind.interop.options import ConvertOptions
from minimind.interop.source import LazyTensor, LazyTensors, Source

_FILE_TYPES = {
    "F32": "ALL_F32",
    "F16": "MOSTLY_F16",
    "BF16": "MOSTLY_BF16",
    "Q8_0": "MOSTLY_Q8_0",
    "Q4_0": "MOSTLY_Q4_0",
}
_QUANTIZATION_VERSION = 2
"""The version of the block layouts that llama.cpp reads."""
_MADE_BY = "minimind.version"
"""The key of the version of MiniMind that wrote the file. `general.version` is the model's own."""


def write(source: Source, path: Path, options: ConvertOptions) -> list[str]:
    """Writes the file. Raises OSError where that fails, ConfigError where llama.cpp does not
    compute such a model or split texts as its tokenizer does, CheckpointError for values that the
    type does not hold."""
    gguf = encoding.import_gguf()
    main = encoding.main_type(options.quantize, source.dtype)
    tensors = list(gguf_tensors(source.config))
    out = gguf.GGUFWriter(path, architecture.find_architecture(source.config))
    fields = architecture.to_fields(source.config)
    fields |= tokenizer_fields(_load_tokenizer(source), source.config.vocab_size)
    for name, value in fields.items():
        _add_field(out, name, value)
    kinds = {}
    for tensor in tensors:
        shape = tensor.shape(source.tensors.shape)
        kind = kinds[tensor.name] = encoding.type_of(tensor.name, shape, tensor.is_fp32, main)
        size = encoding.num_bytes(shape, kind)
        raw = gguf.GGMLQuantizationType[kind]
        out.add_tensor_info(tensor.name, shape, np.dtype(np.float32), size, raw)
    size_label = gguf.size_label(*out.get_total_parameter_count())
    out.add_type(gguf.GGUFType.MODEL)
    out.add_name(f"MiniMind {size_label}")
    out.add_size_label(size_label)
    out.add_file_type(gguf.LlamaFileType[_FILE_TYPES[main]])
    out.add_quantization_version(_QUANTIZATION_VERSION)
    out.add_string(_MADE_BY, minimind.__version__)
    try:
        out.write_header_to_file()
        out.write_kv_data_to_file()
        out.write_ti_data_to_file()
        for tensor in tensors:
            name = f"{source.path}: {tensor.name}"
            content = encoding.encode(tensor.build(source.tensors), kinds[tensor.name], name)
            out.write_tensor_data(content)
    finally:
        out.close()
    return _describe(kinds, main)


def _load_tokenizer(source: Source) -> Tokenizer:
    if source.tokenizer is None:
        raise ConfigError(
            f"--to gguf: {source.path} has no tokenizer, and a GGUF file holds one: give "
            "--tokenizer FOLDER"
        )
    return Tokenizer.load(source.tokenizer)


def _add_field(out: Any, name: str, value: Any) -> None:
    if isinstance(value, bool):
        out.add_bool(name, value)
    elif isinstance(value, int):
        out.add_uint32(name, value)
    elif isinstance(value, float):
        out.add_float32(name, value)
    elif isinstance(value, str):
        out.add_string(name, value)
    else:
        out.add_array(name, value)


def _describe(kinds: dict[str, str], main: str) -> list[str]:
    """Says which types the file holds beside `main`, but for norms and routers."""
    others = sorted({kind for kind in kinds.values() if kind not in (main, "F32")})
    return [
        f"{kind.lower()} instead of {main.lower()}: "
        + ", ".join(name for name, own in kinds.items() if own == kind)
        for kind in others
    ]


def beside(source: Source, output: Path, options: ConvertOptions) -> dict[Path, str]:
    """Gives the Modelfile, if it is asked for. Raises ConfigError."""
    return {modelfile_path(output): modelfile(source, output)} if options.modelfile else {}


def check(source: Source, path: Path, options: ConvertOptions) -> list[Difference]:
    """Reads the file back: its weights must be the source's, rounded to their types, bit by bit.
    The logits of the fixed prompts are compared too; quantized ones may differ."""
    result = reader.open_file(path, ConvertOptions())
    main = encoding.main_type(options.quantize, source.dtype)
    weights = weights_difference(_rounded(source, main), result, lambda tensor: tensor)
    weights.check()
    is_exact = encoding.dtype_of(main) == source.dtype and main in ("F32", "F16", "BF16")
    return [weights, logits_difference(source, result, 0.0 if is_exact else math.inf)]


def _rounded(source: Source, main: str) -> Source:
    """Gives the source with its weights rounded to the types of the file."""
    entries: dict[str, LazyTensor] = {}
    for tensor in gguf_tensors(source.config):
        shape = tensor.shape(source.tensors.shape)
        kind = encoding.type_of(tensor.name, shape, tensor.is_fp32, main)
        for number, name in enumerate(tensor.parts):

            def read(tensor: GgufTensor = tensor, number: int = number, kind: str = kind):
                alone = tensor.join != "columns"
                whole = (
                    source.tensors[tensor.parts[number]] if alone else tensor.build(source.tensors)
                )
                content = encoding.encode(whole, kind, tensor.name)
                whole = encoding.decode(content, tuple(whole.shape), kind)
                return whole if alone else tensor.part(number, whole)

            dtype = encoding.dtype_of(kind)
            entries[name] = LazyTensor(source.tensors.shape(name), dtype, read)
    return Source(
        path=source.path,
        config=source.config,
        tensors=LazyTensors(entries, str(source.path)),
    )

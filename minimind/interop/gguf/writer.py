"""Writes a GGUF file tensor by tensor, and checks it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

import minimind
from minimind.data.tokenizer import Tokenizer
from minimind.errors import ConfigError
from minimind.interop.checks import Difference, check_config, model_differences
from minimind.interop.gguf import architecture, encoding, reader
from minimind.interop.gguf.modelfile import modelfile, modelfile_path
from minimind.interop.gguf.tensors import GgufTensor, gguf_tensors
from minimind.interop.gguf.tokenizer import to_fields as tokenizer_fields
from minimind.interop.options import ConvertOptions
from minimind.interop.source import Source

_QUANTIZATION_VERSION = 2
"""The version of the block layouts that llama.cpp reads."""
_ROUNDING = 1e-5
"""By how much numbers of the configuration may change, as a share of them: a file's have 32 bits,
and YaRN's factor on the attention is read back to six digits."""
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
        kind = kinds[tensor.name] = _kind(tensor, source, main)
        size = encoding.num_bytes(shape, kind)
        raw = gguf.GGMLQuantizationType[kind]
        out.add_tensor_info(tensor.name, shape, np.dtype(np.float32), size, raw)
    size_label = gguf.size_label(*out.get_total_parameter_count())
    out.add_type(gguf.GGUFType.MODEL)
    out.add_name(f"MiniMind {size_label}")
    out.add_size_label(size_label)
    out.add_file_type(gguf.LlamaFileType[f"{'ALL' if main == 'F32' else 'MOSTLY'}_{main}"])
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
    """Reads the file back: its configuration must be the source's, and its weights too, rounded to
    their types, bit by bit. The logits of the fixed prompts are compared as well; they may differ
    where weights, or numbers of the configuration, are rounded."""
    result = reader.open_file(path, ConvertOptions())
    check_config(source, result, _ROUNDING)
    main = encoding.main_type(options.quantize, source.dtype)
    places = {
        name: (tensor, number)
        for tensor in gguf_tensors(source.config)
        for number, name in enumerate(tensor.parts)
    }

    def rounded(name: str) -> Tensor:
        tensor, number = places[name]
        kind = _kind(tensor, source, main)
        # A block lies in a row, which only columns of several parts share.
        is_alone = tensor.join != "columns"
        whole = source.tensors[name] if is_alone else tensor.build(source.tensors)
        content = encoding.encode(whole, kind, tensor.name)
        whole = encoding.decode(content, tuple(whole.shape), kind)
        return whole if is_alone else tensor.part(number, whole)

    keeps_type = encoding.dtype_of(main) == source.dtype and main in ("F32", "F16", "BF16")
    is_exact = keeps_type and result.config == source.config
    return model_differences(source, result, rounded, is_exact=is_exact)


def _kind(tensor: GgufTensor, source: Source, main: str) -> str:
    shape = tensor.shape(source.tensors.shape)
    return encoding.type_of(tensor.name, shape, tensor.is_fp32, main)

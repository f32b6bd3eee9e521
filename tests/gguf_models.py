"""Makes small models of every architecture that a GGUF file can hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import torch
from small_models import random_model, small_config

from minimind.interop.conversion import convert
from minimind.interop.options import ConvertOptions
from minimind.model.state_dict import save_hf_folder
from minimind.samples.text import load_sample_tokenizer

Change = Callable[[dict[str, Any]], None]
"""Changes the fields of a file."""

# Rows of 32 and 64 values can be quantized, those of 48 cannot.
_EXPERTS: dict[str, Any] = {"num_experts": 4, "moe_intermediate_size": 64}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": (
        "llama",
        {"num_key_value_heads": 1, "intermediate_size": 96, "rope_theta": 1234567.0},
    ),
    "llama_untied": ("llama", {"tie_word_embeddings": False, "head_dim": 20}),
    "llama_linear": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 3.0}}),
    "llama_yarn": ("llama", {"rope_scaling": "yarn"}),
    "qwen3": ("qwen3", {"intermediate_size": 64}),
    "qwen3_yarn": (
        "qwen3",
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.1}},
    ),
    "qwen3_experts": ("qwen3", _EXPERTS),
    "qwen3_experts_2": ("qwen3", {**_EXPERTS, "num_experts_per_tok": 2}),
    "shared_experts": (
        "llama",
        {**_EXPERTS, "num_experts_per_tok": 2, "n_shared_experts": 2, "mlp_only_layers": (0,)},
    ),
    "llama_experts": ("llama", {**_EXPERTS, "num_experts": 3, "num_experts_per_tok": 3}),
}
"""By name, the family and the fields of a small model."""
ARCHITECTURES = {
    "llama": "llama",
    "llama_untied": "llama",
    "llama_linear": "llama",
    "llama_yarn": "llama",
    "qwen3": "qwen3",
    "qwen3_yarn": "qwen3",
    "qwen3_experts": "qwen3moe",
    "qwen3_experts_2": "qwen3moe",
    "shared_experts": "ernie4_5-moe",
    "llama_experts": "ernie4_5-moe",
}


def model_folder(folder: Path, name: str, **changes: Any) -> Path:
    """Writes a Hugging Face folder of a small model with random weights, the sample tokenizer and a
    vocabulary a little larger than the tokenizer's."""
    family, fields = MODELS[name]
    tokenizer = load_sample_tokenizer()
    sizes = {"vocab_size": tokenizer.vocab_size + 3, "max_position_embeddings": 512}
    config = small_config(family, **(sizes | fields | changes))
    weights = {n: p.detach() for n, p in random_model(config).named_parameters()}
    save_hf_folder(folder, config, weights, torch.float32)
    tokenizer.save(folder)
    return folder


def gguf_file(folder: Path, name: str, quantize: str | None = None, **changes: Any) -> Path:
    """Writes the model of `model_folder` as a GGUF file too; gives its path."""
    source, output = model_folder(folder / name, name, **changes), folder / f"{name}.gguf"
    convert(source, "gguf", output, ConvertOptions(quantize=quantize))
    return output


def rewrite(path: Path, change: Change, extra: dict[str, torch.Tensor] | None = None) -> Path:
    """Copies a file with other fields and further tensors, by the library alone."""
    read = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in read.fields.items()}
    change(fields)
    output = path.with_name("changed.gguf")
    out = gguf.GGUFWriter(output, fields["general.architecture"])
    for name, value in fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kinds = {bool: out.add_bool, int: out.add_uint32, float: out.add_float32}
        kinds |= {str: out.add_string, list: out.add_array}
        kinds[type(value)](name, value)
    for tensor in read.tensors:
        out.add_tensor(tensor.name, tensor.data)
    for name, tensor in (extra or {}).items():
        out.add_tensor(name, tensor.numpy())
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return output


def setting(**values: Any) -> Change:
    return lambda fields: fields.update({n.replace("__", "."): v for n, v in values.items()})

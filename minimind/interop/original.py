"""Reads models of the original MiniMind: its `.pth` files, whole models and adapters, and the
folders that it publishes with code of their own (`trust_remote_code`), whose code is never run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minimind.config.json_file import load_json, read_json_fields
from minimind.config.model import ModelConfig
from minimind.data.same_tokens import has_tokenizer
from minimind.errors import CheckpointError, ConfigError
from minimind.interop.generations import (
    GENERATIONS,
    Generation,
    find_generation,
    is_rotated,
    to_hf_name,
)
from minimind.interop.mapped_file import MappedFile
from minimind.interop.merging import merge_into, merged_tensors
from minimind.interop.options import ConvertOptions
from minimind.interop.original_config import make_config, read_config_fields
from minimind.interop.pickle_file import load_pickle
from minimind.interop.rotation import to_halves
from minimind.interop.safetensors_file import lazy_tensors
from minimind.interop.source import (
    EMBEDDING,
    HEAD,
    LazyTensor,
    LazyTensors,
    Source,
    SourceAdapter,
    check_tensors,
)
from minimind.lora.adapter import LoraPart
from minimind.model.hf_config import CONFIG_FILE
from minimind.model.state_dict import WEIGHTS_FILE, weight_files

MODEL_TYPE = "minimind"
"""The model_type of the original's folders."""
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_ENDINGS = (".pth", ".pt", ".bin")
_PICKLE_FILE = "pytorch_model.bin"
_TOKENIZERS = (".", "../model", "../model/minimind_tokenizer")
"""Where the tokenizer lies, seen from the weights: beside them, or where the original has it."""
_WRAPPERS = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before each name."""
_BUFFERS = {"freqs_cis", "pos_cis", "freqs_cos", "freqs_sin", "mask", "inv_freq"}
_OTHER_MODELS = {
    "vision_encoder": "a model that sees",
    "vision_proj": "a model that sees",
    "value_head": "a critic",
}
_A, _B = ".lora.A.weight", ".lora.B.weight"


def detect_file(path: Path) -> bool:
    """Tells whether `path` is a file of torch.save by its ending, or a folder with such files and
    no config.json."""
    if path.is_dir():
        return not (path / CONFIG_FILE).exists() and any(path.glob("*.pth"))
    return path.is_file() and path.suffix in _ENDINGS


def detect_folder(path: Path) -> bool:
    """Tells whether `path` is a folder whose config.json has the original's model_type."""
    try:
        return load_json(path / CONFIG_FILE)["model_type"] == MODEL_TYPE
    except (OSError, ValueError, KeyError, TypeError):
        return False


def open_file(path: Path, options: ConvertOptions) -> Source:
    """Opens a `.pth`: a whole model, the state of a training run, or an adapter, whose base is
    `options.base`. Raises CheckpointError, ConfigError."""
    if path.is_dir():
        found = sorted(path.glob("*.pth"))
        if len(found) > 1:
            names = ", ".join(file.name for file in found)
            raise CheckpointError(f"{path}: holds several models ({names}): give one of them")
        path = found[0]
    entries, notes = _read_state(path)
    parts = {name: entries.pop(name) for name in list(entries) if name.endswith((_A, _B))}
    if parts and not entries:
        return _open_adapter(path, parts, options)
    if options.base is not None:
        raise ConfigError(f"--base is for adapters alone; {path} is a whole model")
    source = _open_model(path, entries, {}, notes, options)
    if parts:
        adapter = _read_adapter(path, parts, source.config)
        tensors = merged_tensors(source.config, source.tensors, adapter, str(path))
        note = "the adapters in it were merged into their linears"
        return replace(source, tensors=tensors, notes=[*source.notes, note])
    return source


def open_folder(path: Path, options: ConvertOptions) -> Source:
    """Opens a folder of the original with code of its own. Raises CheckpointError, ConfigError."""
    if options.base is not None:
        raise ConfigError(f"--base is for adapters alone; {path} is a whole model")
    told = read_config_fields(read_json_fields(path / CONFIG_FILE), str(path / CONFIG_FILE))
    entries: dict[str, LazyTensor] = {}
    notes: list[str] = []
    for file in weight_files(path, (WEIGHTS_FILE, _PICKLE_FILE)):
        if file.suffix == ".safetensors":
            found = lazy_tensors(file)
        else:
            found, notes = _read_state(file)
        entries |= found
    return _open_model(path, entries, told, notes, options)


def _read_state(path: Path) -> tuple[dict[str, LazyTensor], list[str]]:
    """Gives the tensors of a `.pth`, by their names without wrappers and without buffers, and
    notes."""
    file = MappedFile(lambda: _load_state(path))
    state, notes = file.file()
    entries: dict[str, LazyTensor] = {}
    for key, tensor in state.items():
        name = key
        while name.startswith(_WRAPPERS):
            name = name.partition(".")[2]
        words = name.split(".")
        for word, what in _OTHER_MODELS.items():
            if word in words:
                raise CheckpointError(f"{path}: {what}, as it has {name}; models here write text")
        if words[-1] in _BUFFERS:
            continue
        if problem := _problem(tensor):
            raise CheckpointError(f"{path}: {name} {problem}")
        read = functools.partial(file.read, lambda loaded, key=key: loaded[0][key])
        entries[name] = LazyTensor(tuple(tensor.shape), tensor.dtype, read)
    return entries, notes


def _load_state(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Gives the state_dict of a file as it is, and notes."""
    loaded, notes = load_pickle(path), []
    if isinstance(loaded, dict) and isinstance(loaded.get("model"), dict):
        notes.append("the state of a training run: its weights were taken, its optimizer was left")
        loaded = loaded["model"]
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in loaded.items()
    ):
        raise CheckpointError(f"{path}: holds no state_dict, a table of names and tensors")
    return loaded, notes


def _problem(tensor: Tensor) -> str:
    """Says why a tensor is no weight; "" where it is one."""
    if tensor.dtype not in _DTYPES:
        return f"is {tensor.dtype}; weights are fp32, fp16, bf16 or fp64"
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        return f"is a {tensor.layout} tensor on {tensor.device}; weights are dense and have values"
    # An expanded tensor repeats few values, and a few bytes could so ask for all memory.
    if tensor.nbytes > tensor.untyped_storage().nbytes():
        return f"repeats values, {tensor.untyped_storage().nbytes():,} bytes for {tensor.nbytes:,}"
    return ""


def _open_model(
    path: Path,
    entries: dict[str, LazyTensor],
    told: Mapping[str, Any],
    notes: list[str],
    options: ConvertOptions,
) -> Source:
    origin = str(path)
    generation = find_generation(entries, origin)
    if generation is GENERATIONS["2504"]:
        entries = {to_hf_name(name): entry for name, entry in entries.items()}
    told = {"tie_word_embeddings": _is_tied(entries, generation, options, origin), **told}
    shapes = {name: entry.shape for name, entry in entries.items()}
    config, assumed = make_config(generation, shapes, told, options.settings, origin)
    if config.tie_word_embeddings and EMBEDDING not in entries and HEAD in entries:
        entries[EMBEDDING] = entries.pop(HEAD)
    tensors = check_tensors(config, LazyTensors(entries, origin))
    if generation is GENERATIONS["2504"]:
        tensors = _in_halves(tensors, config)
        assumed.append("q and k are reordered from rotated pairs to rotated halves")
    tokenizer = _find_tokenizer(path, options)
    if tokenizer is None:
        assumed.append("no tokenizer lies beside it: give its folder with --tokenizer")
    elif options.tokenizer is None:
        assumed.append(f"its tokenizer was found in {tokenizer}")
    return Source(
        path=path, config=config, tensors=tensors, tokenizer=tokenizer, notes=[*notes, *assumed]
    )


def _is_tied(
    entries: Mapping[str, LazyTensor], generation: Generation, options: ConvertOptions, origin: str
) -> bool:
    if HEAD not in entries or EMBEDDING not in entries:
        return True
    head, embedding = entries[HEAD].read(), entries[EMBEDDING].read()
    # A NaN is no reason to take them for two matrices.
    tied = head.shape == embedding.shape and torch.equal(head.nan_to_num(), embedding.nan_to_num())
    if not tied and generation.name != "3" and "tie_word_embeddings" not in options.settings:
        raise CheckpointError(
            f"{origin}: the output head differs from the embedding, and generation "
            f"{generation.name} has only one matrix for both. If the model was trained with two: "
            "--set tie_word_embeddings=false"
        )
    return tied


def _in_halves(tensors: LazyTensors, config: ModelConfig) -> LazyTensors:
    def reordered(entry: LazyTensor) -> Callable[[], Tensor]:
        return lambda: to_halves(entry.read(), config.head_dim)

    entries = {
        name: replace(entry, read=reordered(entry)) if is_rotated(name) else entry
        for name, entry in tensors.entries.items()
    }
    return LazyTensors(entries, tensors.origin)


def _find_tokenizer(path: Path, options: ConvertOptions) -> Path | None:
    if options.tokenizer is not None:
        return options.tokenizer
    folder = path if path.is_dir() else path.absolute().parent
    places = [(folder / place).resolve() for place in _TOKENIZERS]
    return next((place for place in places if has_tokenizer(place)), None)


def _open_adapter(path: Path, entries: dict[str, LazyTensor], options: ConvertOptions) -> Source:
    from minimind.interop.readers import open_source  # which lists this reader

    if options.base is None:
        raise ConfigError(
            f"{path}: an adapter of the original, without its model: give the model it was trained "
            "on with --base"
        )
    base = open_source(options.base, replace(options, base=None))
    folder = base.path.resolve()
    parts = _read_adapter(path, entries, base.config)
    adapter = SourceAdapter(parts=parts, base=folder, base_name=str(folder))
    return merge_into(base, adapter, str(path))


def read_adapter_file(path: Path, config: ModelConfig) -> dict[str, LoraPart]:
    """Reads an adapter alone, for a model of this configuration. Raises CheckpointError."""
    entries, _ = _read_state(path)
    return _read_adapter(path, entries, config)


def _read_adapter(
    path: Path, entries: Mapping[str, LazyTensor], config: ModelConfig
) -> dict[str, LoraPart]:
    """Gives the adapters by Hugging Face's names; the original's scale is 1."""
    is_2504 = find_generation(entries, str(path)) is GENERATIONS["2504"]
    tensors = LazyTensors(entries, str(path))
    adapter: dict[str, LoraPart] = {}
    for key in sorted(tensors):
        name = key.removesuffix(_A).removesuffix(_B)
        if not {name + _A, name + _B} <= set(tensors):
            raise CheckpointError(f"{path}: {name} needs lora.A and lora.B, and has only {key}")
        if key.endswith(_B):
            continue
        a_RI, b_OR = tensors[key].float(), tensors[name + _B].float()
        if a_RI.ndim != 2 or b_OR.ndim != 2 or len(a_RI) != b_OR.shape[1]:
            raise CheckpointError(f"{path}: lora.A and lora.B of {name} are no pair")
        name = to_hf_name(name) if is_2504 else name
        if is_2504 and is_rotated(name) and len(b_OR) % config.head_dim == 0:
            b_OR = to_halves(b_OR, config.head_dim)
        adapter[name] = LoraPart(a_RI, b_OR, float(len(a_RI)))
    return adapter

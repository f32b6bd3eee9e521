"""Loads a checkpoint to generate with: chooses the device and dtype, and loads model and tokenizer.

chat, serve, evaluate, answer and `LLM` all load this way, so the model that is evaluated is the
model that chats.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from minimind.config.json_file import load_json
from minimind.data.same_tokens import check_folder_tokens, describe_other_end
from minimind.data.tokenizer import Tokenizer
from minimind.errors import ConfigError
from minimind.lora.folder import (
    META_FILE,
    find_base,
    find_model_folder,
    fingerprint,
    is_adapter_folder,
    load_model_folder,
    tokenizer_folder,
)
from minimind.lora.loaded import LoadedAdapters
from minimind.model.transformer import Transformer
from minimind.runtime.devices import DTYPES, Device, check_kernels, find_device


@dataclass(frozen=True, slots=True)
class Placement:
    """Names the device on which a model computes, and the dtype of its weights."""

    device: Device
    dtype: torch.dtype


def usual_dtype(device: Device) -> torch.dtype:
    """Gives bf16 where the device trains in it, else fp32. fp16, in which a GPU without bf16
    trains, must be asked for: without a loss scale an overflow would go unnoticed."""
    return torch.bfloat16 if device.precision == "bf16" else torch.float32


def choose_placement(device: str | None = None, dtype: str = "auto") -> Placement:
    """Chooses a device and a dtype. `device` is PyTorch's name of one, by default the GPU if there
    is one; `dtype` is one of DTYPES or "auto" for the device's usual dtype. Raises ConfigError for
    a device that does not exist, and for requested kernels that cannot run on it."""
    found = find_device()
    try:
        target = found.torch_device if device is None else torch.device(device)
    except RuntimeError as error:
        raise ConfigError(
            f"device {device!r} is not known to PyTorch: {str(error).splitlines()[0]}"
        ) from None
    if target.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {device!r}: models run on 'cpu' and 'cuda'")
    if target.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {device!r}: PyTorch finds no GPU here; use 'cpu'")
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {device!r}: there are {torch.cuda.device_count()} GPUs here")
    if dtype not in ("auto", *DTYPES):
        raise ConfigError(f"dtype {dtype!r} is not known; use auto, {', '.join(DTYPES)}")
    placed = dataclasses.replace(found, torch_device=target)
    check_kernels(placed)
    if dtype != "auto":
        return Placement(placed, DTYPES[dtype])
    is_other = target.type != found.torch_device.type
    return Placement(placed, torch.float32 if is_other else usual_dtype(found))


def add_dtype_flag(add: argparse._ActionsContainer) -> None:
    """Adds --dtype, with the values that `choose_placement` takes."""
    add.add_argument(
        "--dtype",
        choices=("auto", *DTYPES),
        default="auto",
        help="of the weights; auto: bf16 where the device has it, else fp32 (default: %(default)s)",
    )


def load_checkpoint(path: Path, placement: Placement) -> tuple[Transformer, Tokenizer]:
    """Loads the model and tokenizer of a run's folder, one checkpoint in it, or a model folder.
    Raises a MiniMindError where they are missing or cannot be used."""
    folder = find_model_folder(path)
    return load_model(folder, dtype=placement.dtype, device=placement.device.torch_device)


def load_model(
    folder: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> tuple[Transformer, Tokenizer]:
    """Loads a model folder's model, with any adapter merged and ready to generate, and its
    tokenizer. Raises a MiniMindError where one is missing or they do not fit each other."""
    config, weights = load_model_folder(folder)
    tokenizer = Tokenizer.load(tokenizer_folder(folder))
    if is_adapter_folder(folder):
        check_folder_tokens(
            tokenizer, find_base(folder).folder, "An adapter leaves its model's embedding as it "
            "is: put the model's own tokenizer beside it",
        )  # fmt: skip
    tokenizer.check_fits(config.vocab_size)
    model = Transformer(config)
    model.load_named(weights)
    model.to(device or torch.device("cpu"), dtype).eval()
    lay_out_for_decoding(model)
    return model, tokenizer


TEXT_ALONE = (
    "was trained on text and never to chat: it continues what you write and does not answer"
)
"""The words of `chat_notice` for a model that has never learnt to chat."""


def chat_notice(path: Path) -> str | None:
    """Says that the model was trained on text alone, so that it continues a question and does not
    answer it. None where it has learnt to chat, and where its checkpoint does not show that."""
    meta_file = find_model_folder(path).parent / META_FILE
    try:
        meta = load_json(meta_file)
    except (OSError, ValueError):
        return None
    if not isinstance(meta, dict) or meta.get("is_chat") is not False:
        return None
    return f"{path} {TEXT_ALONE}. Train it to answer with --stage sft --from_checkpoint {path}"


def load_adapters(
    model: Transformer, tokenizer: Tokenizer, base: Path, folders: Mapping[str, Path]
) -> LoadedAdapters | None:
    """Loads adapters by name from their folders over the model loaded from the folder `base`; None
    where `folders` is empty. Raises a MiniMindError for an adapter of another model or
    tokenizer."""
    if not folders:
        return None
    adapters = LoadedAdapters(model, fingerprint(base))
    for name, folder in folders.items():
        adapters.load(name, folder)
        advice = (
            f"The adapter {name!r} was trained on other ids: give its folder as the checkpoint "
            "instead, or train one beside this model and its tokenizer"
        )
        check_folder_tokens(tokenizer, folder, advice)
        if said := describe_other_end(tokenizer, folder):  # its answers would not end
            raise ConfigError(f"{said}. {advice}")
    return adapters


@torch.no_grad()
def lay_out_for_decoding(model: Transformer) -> None:
    """Stores fp32 matrices of a CPU model by columns, for where PyTorch decodes; values and shapes
    stay the same. MKL then multiplies 8 tokens in half the time, and 1 or 512 tokens in the same
    time."""
    for parameter in model.parameters():
        if parameter.dim() == 2 and parameter.dtype == torch.float32 and parameter.is_cpu:
            parameter.data = parameter.data.t().contiguous().t()

"""Converts a checkpoint: `minimind convert --input RUN --to hf --output DIR`."""

from __future__ import annotations

import argparse
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError

from minimind.data.same_tokens import has_tokenizer
from minimind.data.tokenizer import Tokenizer
from minimind.errors import ConfigError, DataError, MiniMindError
from minimind.lora.folder import (
    ADAPTER_CONFIG_FILE,
    find_model_folder,
    is_adapter_folder,
    load_model_folder,
    tokenizer_folder,
)
from minimind.model.hf_config import CONFIG_FILE
from minimind.model.state_dict import save_hf_folder
from minimind.runtime.cache_folder import new_folder
from minimind.runtime.devices import DTYPES
from minimind.runtime.logging import set_up_logging

logger = logging.getLogger("minimind")


def main(argv: Sequence[str] | None = None) -> int:
    set_up_logging(0)
    parser = argparse.ArgumentParser(description="Converts a checkpoint to another format.")
    parser.add_argument(
        "--input",
        required=True,
        type=Path,
        help="a run's folder, one checkpoint in it, a Hugging Face folder, or an adapter's, which "
        "is merged into its base",
    )
    parser.add_argument("--to", required=True, choices=("hf",), help="hf: a Hugging Face folder")
    parser.add_argument("--output", required=True, type=Path, help="a folder that is not there yet")
    parser.add_argument(
        "--dtype", choices=tuple(DTYPES), default="fp32", help="of the weights (default: fp32)"
    )
    arguments = parser.parse_args(argv)
    try:
        convert_to_hf(arguments.input, arguments.output, DTYPES[arguments.dtype])
    except MiniMindError as error:
        logger.error("error: %s", error)
        return 2
    merged = is_adapter_folder(find_model_folder(arguments.input))
    print(f"{arguments.output}: written{', the adapter merged into its base' * merged}")
    return 0


def convert_to_hf(source: Path, output: Path, dtype: torch.dtype) -> None:
    """Converts a checkpoint to a Hugging Face folder: checks its weights, merges an adapter into
    its base, writes the weights in `dtype`, and adds the tokenizer. The folder is complete or
    absent. Raises a MiniMindError."""
    folder, output = find_model_folder(source), output.absolute()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"--output {output}: exists already and is not an empty folder")
    config, weights = load_model_folder(folder)
    try:
        with new_folder(output) as new:
            save_hf_folder(new, config, weights, dtype)
            for file in folder.iterdir():
                ours = file.name in (CONFIG_FILE, ADAPTER_CONFIG_FILE) or _holds_weights(file)
                if file.is_file() and not ours:
                    shutil.copy2(file, new / file.name)
            _write_tokenizer(tokenizer_folder(folder), new)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"--output {output}: cannot be written: {error}") from None


def _write_tokenizer(source: Path, output: Path) -> None:
    """Writes tokenizer files with which `transformers` begins a text as training does; those of
    earlier versions left out bos. A tokenizer that cannot be read is copied unchanged."""
    if has_tokenizer(source):
        try:
            Tokenizer.load(source).save(output)
        except DataError as error:
            logger.warning("%s; the tokenizer is copied as it is", error)


def _holds_weights(file: Path) -> bool:
    """Tells whether a file holds weights, in any format, or is the index of weights in shards."""
    return file.name.endswith((".safetensors", ".bin", ".pth", ".index.json"))

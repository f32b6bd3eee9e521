"""Lists the formats that a conversion writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from minimind.interop import hf_folder, original_writer, peft_folder
from minimind.interop.checks import Difference
from minimind.interop.gguf import writer as gguf_file
from minimind.interop.options import ConvertOptions
from minimind.interop.source import Source
from minimind.runtime.devices import DTYPES


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes one format."""

    what: str
    """Describes the format, for help texts."""
    write: Callable[[Source, Path, ConvertOptions], list[str]]
    """Writes into a temporary folder, which exists and is empty, or a file, which does not exist
    yet. Gives notes for the user. Raises OSError where it cannot be written, and the errors of
    minimind/errors.py where the model cannot be written in this format."""
    check: Callable[[Source, Path, ConvertOptions], list[Difference]]
    """Reads what was written and compares it with the source."""
    is_folder: bool = True
    """Whether the result is a folder; else it is one file."""
    dtypes: tuple[str, ...] = tuple(DTYPES)
    """The values of --dtype that it takes."""
    beside: Callable[[Source, Path, ConvertOptions], dict[Path, str]] = lambda *_: {}
    """Gives small text files that belong beside the output, by their paths."""


WRITERS = {
    "hf": Writer("a Hugging Face folder that transformers loads", hf_folder.write, hf_folder.check),
    "minimind": Writer(
        "the same without a model card, also for models that transformers has no class for",
        hf_folder.write_own,
        hf_folder.check,
    ),
    "peft": Writer(
        "an adapter's folder for PEFT and transformers 5", peft_folder.write, peft_folder.check
    ),
    "pth": Writer(
        "a .pth of the original MiniMind",
        original_writer.write,
        original_writer.check,
        is_folder=False,
    ),
    "lora_pth": Writer(
        "an adapter alone, as a .pth of the original MiniMind",
        original_writer.write_adapter,
        original_writer.check_adapter,
        is_folder=False,
    ),
    "gguf": Writer(
        "a GGUF file, for llama.cpp and Ollama",
        gguf_file.write,
        gguf_file.check,
        is_folder=False,
        dtypes=(),
        beside=gguf_file.beside,
    ),
}
"""The writer of each value of --to."""

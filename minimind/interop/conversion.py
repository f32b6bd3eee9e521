"""Converts a model: reads it, writes it in another format, compares the two, and only then puts the
result in place."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from minimind.errors import ConfigError
from minimind.interop.checks import Difference
from minimind.interop.options import ConvertOptions
from minimind.interop.readers import open_source
from minimind.interop.writers import WRITERS, Writer
from minimind.runtime.cache_folder import new_folder
from minimind.runtime.whole_files import write_whole

_FORMATS_OF = {
    "quantize": ("gguf",),
    "modelfile": ("gguf",),
    "generation": ("pth", "lora_pth"),
    "base_name": ("peft",),
    "allow_custom_code": ("hf",),
}
"""The formats that an option is for."""


@dataclass(frozen=True, slots=True)
class Converted:
    """Reports a conversion."""

    output: Path
    notes: list[str]
    differences: list[Difference]


def convert(source: Path, to: str, output: Path, options: ConvertOptions) -> Converted:
    """Converts the model at `source` to the format `to`, a key of WRITERS. `output` is complete and
    compared with its source, or untouched. Raises a MiniMindError."""
    check_options(to, options)
    writer, output = WRITERS[to], output.absolute()
    _check_free(output, writer)
    options = dataclasses.replace(options, name=output.name)
    opened = open_source(source, options)
    beside = writer.beside(opened, output, options)
    for path in beside:
        if path.exists():
            raise ConfigError(f"{path}: exists already")
    try:
        with (new_folder if writer.is_folder else write_whole)(output) as new:
            notes = writer.write(opened, new, options)
            differences = writer.check(opened, new, options)
            for difference in differences:
                difference.check()
            _check_free(output, writer)
        for path, text in beside.items():
            with write_whole(path) as new:
                new.write_text(text, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"--output {output}: cannot be written{_space(output)}: {error}"
        ) from None
    return Converted(
        output, [*opened.notes, *notes, *(f"{path}: written" for path in beside)], differences
    )


def check_options(to: str, options: ConvertOptions) -> None:
    """Raises ConfigError for an option that the format `to`, a key of WRITERS, does not have."""
    writer = WRITERS[to]
    if options.dtype is not None and options.dtype not in writer.dtypes:
        dtypes = ", ".join(writer.dtypes) or "what --quantize says"
        raise ConfigError(f"--dtype {options.dtype}: --to {to} writes {dtypes}")
    for name, formats in _FORMATS_OF.items():
        if getattr(options, name) and to not in formats:
            known = " and ".join(f"--to {each}" for each in formats)
            raise ConfigError(f"--{name} is an option of {known} alone")


def _check_free(output: Path, writer: Writer) -> None:
    """Raises ConfigError where something is at `output` already; an empty folder may be there for a
    folder."""
    if writer.is_folder:
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise ConfigError(f"--output {output}: exists already and is not an empty folder")
    elif output.exists():
        raise ConfigError(f"--output {output}: exists already")


def _space(output: Path) -> str:
    """Says how much space is free where `output` was to be."""
    for folder in output.parents:
        if folder.is_dir():
            return f" ({shutil.disk_usage(folder).free / 1e9:.1f} GB free there)"
    return ""

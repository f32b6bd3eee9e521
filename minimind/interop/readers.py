"""Lists the kinds of files that a conversion reads, and opens them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from minimind.config.spelling import did_you_mean_file
from minimind.errors import CheckpointError
from minimind.interop import original, own_folder, zero_shards
from minimind.interop.gguf import reader as gguf_file
from minimind.interop.options import ConvertOptions
from minimind.interop.source import Source


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads one kind of files."""

    what: str
    """Describes these files, for help texts and messages."""
    detect: Callable[[Path], bool]
    """Tells from names and shapes, without reading weights, whether a path is of this kind. It
    raises CheckpointError where the path is of this kind but damaged, and never guesses."""
    open: Callable[[Path, ConvertOptions], Source]
    """Opens it. Raises CheckpointError, ConfigError or DataError."""


READERS = (
    Reader(
        "a folder of the original MiniMind with code of its own (model_type minimind)",
        original.detect_folder,
        original.open_folder,
    ),
    Reader(
        "a run's folder, one checkpoint in it, a Hugging Face folder, or an adapter's, which is "
        "merged into its base",
        own_folder.detect,
        own_folder.open_folder,
    ),
    Reader(
        "the engine/ folder of a checkpoint (DeepSpeed's shards, of any ZeRO stage)",
        zero_shards.detect,
        zero_shards.open_shards,
    ),
    Reader(
        "a .pth of the original MiniMind, or a folder that holds one; an adapter's needs --base",
        original.detect_file,
        original.open_file,
    ),
    Reader("a GGUF file", gguf_file.detect, gguf_file.open_file),
)
"""The first reader that detects a path opens it."""


def open_source(path: Path, options: ConvertOptions | None = None) -> Source:
    """Opens the model at `path` with the reader that knows its kind. Raises CheckpointError for a
    path that none knows."""
    for reader in READERS:
        if reader.detect(path):
            return reader.open(path, options or ConvertOptions())
    known = "; ".join(reader.what for reader in READERS)
    missing = "" if path.exists() else f" no such file or folder{did_you_mean_file(path)};"
    raise CheckpointError(f"{path}:{missing} not a model that can be read here. Known: {known}")

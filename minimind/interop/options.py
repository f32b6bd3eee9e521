"""Defines what a user may choose about a conversion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minimind.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions:
    """Holds the options of readers and writers. Each reads those that concern it."""

    name: str = "A MiniMind model"
    """The result's name, for its model card."""
    dtype: str | None = None
    """The type of the weights that are written, one of the writer's `dtypes`; None keeps the
    source's."""
    tokenizer: Path | None = None
    """The tokenizer's folder, for files that bring none."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the model's configuration (`--set`), for files that do not say them."""
    base: Path | None = None
    """The model of an adapter that does not name it."""
    base_name: str | None = None
    """What a written adapter calls its model; None keeps what the source says."""
    generation: str | None = None
    """The generation of the original that a `.pth` is written for; None chooses by the model."""
    allow_custom_code: bool = False
    """Write a model that `transformers` loads with trust_remote_code alone."""
    max_shard_bytes: int = 5_000_000_000
    """The size above which the weights of a Hugging Face folder are divided among files."""
    quantize: str | None = None
    """The type of most weights of a GGUF file, one of gguf/encoding.py's `CHOICES`; None takes the
    one that holds the source's weights exactly."""
    modelfile: bool = False
    """Write a Modelfile for Ollama beside a GGUF file."""

    def check_only_tokenizer(self, path: Path) -> None:
        """Raises ConfigError for options of a source other than its tokenizer, where the files at
        `path` say it themselves."""
        for flag, given in (("--set", self.settings), ("--base", self.base)):
            if given:
                raise ConfigError(f"{flag} is for weights that do not say it; {path} does")

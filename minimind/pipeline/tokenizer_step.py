"""Defines the step that trains a tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

from minimind.data.rows import FORMAT_NAMES
from minimind.data.same_tokens import has_tokenizer
from minimind.data.tokenizer_training import MIN_VOCAB_SIZE
from minimind.data.training_texts import read_training_texts
from minimind.errors import ConfigError
from minimind.pipeline.data_heads import HEAD_BYTES
from minimind.pipeline.options import TokenizerFields, spell_flags
from minimind.pipeline.stand_ins import write_tokenizer
from minimind.pipeline.step import Checked, Inputs, Place, Results, Step, digest_data, versions_of
from minimind.run.parser import check_choice
from minimind.samples.sources import find_data_file


class TokenizerStep(Step):
    """Trains a tokenizer by `minimind tokenizer`."""

    verb: ClassVar[str] = "tokenizer"

    def __init__(self, name: str, where: str, fields: TokenizerFields) -> None:
        super().__init__(name, (), where)
        self.fields = fields

    @property
    def title(self) -> str:
        return f"tokenizer of {self.fields.vocab_size:,} tokens"

    def check(self, results: Results, place: Place) -> Checked:
        fields = self.fields
        if fields.vocab_size < MIN_VOCAB_SIZE:
            raise ConfigError(f"vocab_size is {fields.vocab_size}; at least {MIN_VOCAB_SIZE}")
        if fields.format and (problem := check_choice("form of rows", fields.format, FORMAT_NAMES)):
            raise ConfigError(f"format: {problem}")
        if fields.max_bytes < 0:
            raise ConfigError(f"max_bytes is {fields.max_bytes}; give 0 for all, or how many")
        for _ in self._texts():
            pass
        return Checked()

    def write_stand_in(self, folder: Path, checked: Checked) -> None:
        write_tokenizer(folder, self._texts(), self.fields.vocab_size)

    def inputs(self, results: Results, place: Place) -> Inputs:
        options = {name: value for name, value in asdict(self.fields).items() if name != "data"}
        return options | digest_data(self.fields.data, "train") | versions_of("tokenizers")

    def flags(self, results: Results, folder: Path) -> list[str]:
        return [*spell_flags(self.fields), "--output_dir", str(folder)]

    def is_complete(self, folder: Path) -> bool:
        return has_tokenizer(folder)

    def _texts(self) -> Iterable[str]:
        """Yields the texts at the beginning of the data. Raises DataError for bad rows there."""
        data = [find_data_file(path, "train") for path in self.fields.data]
        fields = self.fields
        return read_training_texts(
            data, fields.on_bad_row, format_name=fields.format, max_bytes=HEAD_BYTES
        )

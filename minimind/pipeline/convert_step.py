"""Defines the step that writes a model in another format."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

from minimind.errors import ConfigError
from minimind.interop.conversion import check_options
from minimind.interop.generations import GENERATIONS
from minimind.interop.gguf.encoding import CHOICES, import_gguf
from minimind.interop.options import ConvertOptions
from minimind.interop.writers import WRITERS
from minimind.lora.folder import find_model_folder, fingerprint
from minimind.pipeline.options import ConvertFields, spell_flags
from minimind.pipeline.step import Checked, Inputs, Place, Results, Step, versions_of
from minimind.run.parser import check_choice

_OF_ADAPTERS = ("peft", "lora_pth")
"""The formats that hold an adapter alone."""


class ConvertStep(Step):
    """Converts a model by `minimind convert`."""

    verb: ClassVar[str] = "convert"

    def __init__(
        self, name: str, where: str, source: str, fields: ConvertFields, *, model_name: str,
        is_adapter: bool,
    ) -> None:  # fmt: skip
        """`model_name` becomes the name of what is written; `is_adapter` tells whether `source`
        trains adapters."""
        super().__init__(name, (source,), where)
        self.fields = fields
        self._model_name = model_name
        self._is_adapter = is_adapter

    @property
    def title(self) -> str:
        return f"conversion to {self.fields.to}"

    def check(self, results: Results, place: Place) -> Checked:
        fields = self.fields
        for name, given, choices in (
            ("to", fields.to, WRITERS),
            ("quantize", fields.quantize, CHOICES),
            ("generation", fields.generation, GENERATIONS),
        ):
            if given is not None and (problem := check_choice(f"value of {name}", given, choices)):
                raise ConfigError(problem)
        given = {name: value for name, value in asdict(fields).items() if name != "to"}
        check_options(fields.to, ConvertOptions(**given))
        if fields.to in _OF_ADAPTERS and not self._is_adapter:
            raise ConfigError(
                f"to {fields.to} writes an adapter, and {self.sources[0]!r} trains a whole model"
            )
        if fields.to == "gguf":
            import_gguf()
        return Checked()

    def inputs(self, results: Results, place: Place) -> Inputs:
        weights = fingerprint(find_model_folder(results[self.sources[0]]))
        return asdict(self.fields) | {"weights": weights} | versions_of()

    def output(self, folder: Path) -> Path:
        """Gives the path of the file or folder that is written."""
        is_folder = WRITERS[self.fields.to].is_folder
        suffix = "" if is_folder else ".gguf" if self.fields.to == "gguf" else ".pth"
        return folder / f"{self._model_name}{suffix}"

    def flags(self, results: Results, folder: Path) -> list[str]:
        source, output = results[self.sources[0]], self.output(folder)
        return ["--input", str(source), *spell_flags(self.fields), "--output", str(output)]

    def is_complete(self, folder: Path) -> bool:
        return self.output(folder).exists()

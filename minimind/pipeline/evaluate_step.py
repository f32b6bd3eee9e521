"""Defines the step that evaluates the models of earlier steps side by side."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from minimind.data.data_file import find_data
from minimind.data.rows import RowReader
from minimind.errors import ConfigError
from minimind.evaluation.multiple_choice import read_questions
from minimind.lora.folder import find_model_folder, fingerprint
from minimind.pipeline.options import EvaluateFields, spell_flags
from minimind.pipeline.step import (
    Checked,
    Inputs,
    Place,
    Results,
    Step,
    digest_contents,
    digest_data,
    versions_of,
)
from minimind.samples.sources import find_data_file

RESULTS_FILE = "results.json"


class EvaluateStep(Step):
    """Evaluates models by `minimind evaluate`."""

    verb: ClassVar[str] = "evaluate"

    def __init__(
        self, name: str, where: str, sources: Sequence[str], fields: EvaluateFields
    ) -> None:
        super().__init__(name, sources, where)
        self.fields = fields

    @property
    def title(self) -> str:
        fields = self.fields
        kinds = {"perplexity": fields.data, "choices": fields.choices, "tasks": fields.tasks}
        kinds |= {"answers": fields.prompts}
        return f"evaluation: {', '.join(kind for kind, given in kinds.items() if given)}"

    def check(self, results: Results, place: Place) -> Checked:
        fields = self.fields
        if not (fields.data or fields.choices or fields.tasks or fields.prompts):
            raise ConfigError("nothing to evaluate: give data, choices, tasks or prompts")
        for path in fields.data:
            RowReader(find_data(find_data_file(path, "val")), (fields.format,))
        for path in (fields.choices, fields.examples):
            if path:
                read_questions(Path(path))
        if fields.tasks and importlib.util.find_spec("lm_eval") is None:
            raise ConfigError("tasks need lm-evaluation-harness: pip install 'minimind[eval]'")
        for prompt in fields.prompts:
            if not prompt.strip() or (prompt.startswith("@") and not Path(prompt[1:]).is_file()):
                raise ConfigError(
                    f"prompts holds {prompt!r}: give texts, or @FILE of a file with one a line"
                )
        return Checked()

    def inputs(self, results: Results, place: Place) -> Inputs:
        found = asdict(self.fields)
        found |= digest_data(found.pop("data"), "val")
        paths = {name: found.pop(name) for name in ("choices", "examples", "task_folder")}
        texts = [text for text in self.fields.prompts if text.startswith("@")]
        paths |= {text: text[1:] for text in texts}
        found |= {f"content of {name}": _digest(Path(path)) for name, path in paths.items() if path}
        for name in self.sources:
            found[f"weights of {name}"] = fingerprint(find_model_folder(results[name]))
        return found | versions_of()

    def flags(self, results: Results, folder: Path) -> list[str]:
        models = [str(results[name]) for name in self.sources]
        written = ["--json", str(folder / RESULTS_FILE)]
        return ["--checkpoint", *models, *spell_flags(self.fields), *written]

    def is_complete(self, folder: Path) -> bool:
        return (folder / RESULTS_FILE).is_file()

    def read_results(self, folder: Path) -> dict[str, dict[str, Any]]:
        """Reads what was measured, by the names of the steps. Raises OSError and ValueError."""
        found = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))
        return dict(zip(self.sources, found.values(), strict=True))


def _digest(path: Path) -> list[str]:
    files = sorted(one for one in path.rglob("*") if one.is_file())
    return digest_contents(files if path.is_dir() else [path])

"""Reads a pipeline's file, called its recipe: which steps there are, and which takes the result of
which."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minimind.config.json_file import no_duplicates, read_json_fields
from minimind.config.shipped import find_json, shipped_folder
from minimind.config.spelling import did_you_mean
from minimind.config.typed import convert
from minimind.data.mixture import SAMPLE_PREFIX
from minimind.errors import ConfigError
from minimind.pipeline.convert_step import ConvertStep
from minimind.pipeline.evaluate_step import EvaluateStep
from minimind.pipeline.options import ConvertFields, EvaluateFields, TokenizerFields, read_fields
from minimind.pipeline.process import LAUNCHERS
from minimind.pipeline.step import Step
from minimind.pipeline.tokenizer_step import TokenizerStep
from minimind.pipeline.train_step import TrainStep, find_references
from minimind.run.parser import CONTROLS
from minimind.stages import STAGES

RECIPES = shipped_folder("recipes")
"""The folder of the shipped recipes."""
_FILLED_IN = {
    "train": ("output_dir", "local_rank", *CONTROLS),
    "tokenizer": ("output_dir",),
    "evaluate": ("checkpoint", "json"),
    "convert": ("input", "output"),
}
"""The flags of each verb that the pipeline gives itself."""
_PATHS = ("data", "val_data", "choices", "examples", "task_folder")
"""The fields whose relative paths begin in the folder of the data."""
_NAME = re.compile(r"(?!report$)[A-Za-z0-9][A-Za-z0-9_-]*")
"""Matches the names of steps; the report has its own folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """Holds the content of a recipe."""

    path: Path
    description: str
    sized_for: str | None
    """The machine, as --on takes it, that batch sizes were chosen for."""
    launcher: str | None
    ranks: int | None
    steps: tuple[Step, ...]

    @property
    def name(self) -> str:
        return self.path.stem


def load_pipeline(name: str, data_dir: str | None = None) -> Pipeline:
    """Reads a recipe by its path, else a shipped one by its name. Relative paths of data begin in
    `data_dir`, else in the recipe's own `data_dir`, else in the working directory. Raises
    ConfigError."""
    path = find_json(name, RECIPES, "recipe")
    values = read_json_fields(path, object_pairs_hook=no_duplicates)
    known: dict[str, Any] = {
        "description": str,
        "sized_for": str | None,
        "data_dir": str | None,
        "launcher": str | None,
        "ranks": int | None,
        "steps": list[dict[str, Any]],
    }
    for key in values:
        if key not in known:
            guess = did_you_mean(key, known)
            raise ConfigError(f"{path}: unknown key {key}{guess}; known: {', '.join(known)}")
    found = {
        key: convert(values[key], hint, f"{path}: {key}") if key in values else None
        for key, hint in known.items()
    }
    launcher = found["launcher"]
    if launcher not in (None, *LAUNCHERS):
        guess, there = did_you_mean(launcher, LAUNCHERS), ", ".join(LAUNCHERS)
        raise ConfigError(f"{path}: launcher is {launcher!r}{guess}; it must be one of {there}")
    check_ranks(found["ranks"], f"{path}: ranks")
    if not found["steps"]:
        raise ConfigError(f'{path}: needs "steps", a list of at least one step')
    reader = _StepReader(path, data_dir or found["data_dir"])
    for number, step in enumerate(found["steps"], start=1):
        reader.read(number, step)
    return Pipeline(
        path=path,
        description=found["description"] or "",
        sized_for=found["sized_for"],
        launcher=launcher,
        ranks=found["ranks"],
        steps=tuple(reader.steps.values()),
    )


def check_ranks(given: int | None, what: str) -> None:
    """Raises ConfigError for a number of ranks below 1; `what` names where it was given."""
    if given is not None and given < 1:
        raise ConfigError(f"{what} is {given}; it must be at least 1")


class _StepReader:
    """Reads the steps of a recipe in order, since a step may take results of earlier ones."""

    def __init__(self, path: Path, data_dir: str | None) -> None:
        self._path, self._data_dir = path, data_dir
        self.steps: dict[str, Step] = {}

    def read(self, number: int, values: Mapping[str, Any]) -> None:
        where = f"{self._path}: step {number}"
        fields = {
            key: self._place(value) if key in _PATHS else value for key, value in values.items()
        }
        verb = convert(fields.pop("verb", "train"), str, f"{where}: verb")
        readers: dict[str, Callable[..., Step]] = {
            "train": self._train,
            "tokenizer": self._tokenizer,
            "evaluate": self._evaluate,
            "convert": self._convert,
        }
        if verb not in readers:
            guess = did_you_mean(verb, readers)
            raise ConfigError(f"{where}: verb is {verb!r}{guess}; known: {', '.join(readers)}")
        usual = str(fields.get("stage", "pretrain")) if verb == "train" else verb
        name = convert(fields.pop("name", usual), str, f"{where}: name")
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{where}: name is {name!r}; it must be of letters, digits, _ and -, since it "
                "names a folder, and not 'report'"
            )
        where = f"{where} ({name})"
        if name in self.steps:
            raise ConfigError(f"{where}: an earlier step has this name: give it another one")
        for key in _FILLED_IN[verb]:
            if key in fields:
                raise ConfigError(f"{where}: {key} is given by the pipeline: leave it out")
        self.steps[name] = readers[verb](name, where, fields)

    def _train(self, name: str, where: str, fields: dict[str, Any]) -> Step:
        references = [
            self._find(one, where, "step:", TrainStep).name for one in find_references(fields)
        ]
        source = self._find_start(where, fields)
        return TrainStep(
            name,
            where,
            fields,
            source=source.name if source else None,
            takes_tokenizer=isinstance(source, TokenizerStep),
            references=references,
        )

    def _find_start(self, where: str, fields: dict[str, Any]) -> Step | None:
        """Gives the step that a training takes weights or a tokenizer from, and takes `from` out of
        its fields."""
        given, checkpoint = fields.pop("from", None), fields.get("from_checkpoint")
        if given is not None:
            if checkpoint is not None:
                raise ConfigError(f"{where}: from and from_checkpoint contradict: give one of them")
            return self._find(given, where, "from", TrainStep, TokenizerStep)
        stage = str(fields.get("stage", "pretrain"))
        if checkpoint is None and stage in STAGES and STAGES[stage].needs_checkpoint:
            if found := self._last(TrainStep):
                return found
            raise ConfigError(
                f"{where}: stage {stage} starts from trained weights, and no earlier step trains a "
                "model: put one before it, or give from_checkpoint"
            )
        is_fresh = checkpoint in (None, "none") and "tokenizer" not in fields
        return self._last(TokenizerStep) if is_fresh else None

    def _tokenizer(self, name: str, where: str, fields: dict[str, Any]) -> Step:
        if "from" in fields:
            raise ConfigError(f"{where}: a tokenizer is trained on data alone: leave out from")
        return TokenizerStep(name, where, read_fields(TokenizerFields, fields, where))

    def _evaluate(self, name: str, where: str, fields: dict[str, Any]) -> Step:
        given = fields.pop("from", None)
        if given is None:
            found = [step for step in self.steps.values() if isinstance(step, TrainStep)]
        else:
            names = given if isinstance(given, list) else [given]
            found = [self._find(one, where, "from", TrainStep) for one in names]
        if not found:
            raise ConfigError(f"{where}: no earlier step trains a model to evaluate")
        sources = [step.name for step in found]
        return EvaluateStep(name, where, sources, read_fields(EvaluateFields, fields, where))

    def _convert(self, name: str, where: str, fields: dict[str, Any]) -> Step:
        given = fields.pop("from", None)
        last = self._last(TrainStep)
        source = last if given is None else self._find(given, where, "from", TrainStep)
        if source is None:
            raise ConfigError(f"{where}: no earlier step trains a model to convert")
        assert isinstance(source, TrainStep)
        return ConvertStep(
            name,
            where,
            source.name,
            read_fields(ConvertFields, fields, where),
            model_name=self._path.stem,
            is_adapter=source.stage == "lora",
        )

    def _last(self, kind: type[Step]) -> Step | None:
        return next((s for s in reversed(self.steps.values()) if isinstance(s, kind)), None)

    def _find(self, given: Any, where: str, what: str, *kinds: type[Step]) -> Step:
        """Gives an earlier step of one of `kinds`. Raises ConfigError."""
        names = [name for name, step in self.steps.items() if isinstance(step, kinds)]
        if given in names:
            return self.steps[given]
        guess = did_you_mean(str(given), names)
        raise ConfigError(
            f"{where}: {what} names {given!r}, which is no earlier step that it can build on"
            f"{guess}; there are {', '.join(names) or 'none'}"
        )

    def _place(self, value: Any) -> Any:
        """Puts the folder of the data before relative paths."""
        if isinstance(value, list):
            return [self._place(one) for one in value]
        if not isinstance(value, str) or not self._data_dir or value.startswith(SAMPLE_PREFIX):
            return value
        return str(Path(self._data_dir, value))

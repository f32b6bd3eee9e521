"""Reads the user's options from the command line or from Python, and sorts them by subject."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minimind.config.json_file import load_json
from minimind.config.recipe import FLAGS, parse_assignments, spell_assignment, spell_option
from minimind.errors import ConfigError
from minimind.run.parser import CONTROLS, LISTS, RUN_FLAGS, build_parser, check_choice
from minimind.run.unknown_names import (
    MODEL_FIELDS,
    Spelling,
    explain,
    explain_flags,
    option_names,
    spell_flag,
    spell_keyword,
)

_PARTS = ("run", "recipe", "model", "ds_config")
"""The fields of TrainArguments that run.json keeps."""


@dataclasses.dataclass(frozen=True, slots=True)
class TrainArguments:
    """Holds the options that the user gave, without any defaults."""

    run: dict[str, Any]
    """Flags about the run as a whole."""
    recipe: dict[str, Any]
    """Recipe options, from flags and --set."""
    model: dict[str, Any]
    """Model fields, from --set."""
    ds_config: dict[str, Any]
    """Dotted keys of the DeepSpeed JSON, from --set ds_config.KEY=VALUE."""
    resume: bool
    dry_run: bool
    local_rank: int | None
    on: str | None = None
    """The DEVICE[:RANKS] for which a dry run rehearses; None for this machine."""

    def get(self, name: str) -> Any:
        """Gives the value of a run flag: the user's, else its default, else None."""
        return self.run.get(name, RUN_FLAGS[name].get("default"))

    def to_dict(self) -> dict[str, Any]:
        """Gives the arguments as run.json holds them and `merge` reads them."""
        return {part: getattr(self, part) for part in _PARTS}

    def to_flags(self) -> list[str]:
        """Gives the flags of `minimind train` that these arguments are read from."""
        flags: list[str] = []
        for name, value in self.run.items():
            flags += [f"--{name}", *([value] if isinstance(value, str) else value)]
        settings = self.recipe | self.model
        settings |= {f"ds_config.{key}": value for key, value in self.ds_config.items()}
        for key, value in settings.items():
            if key in FLAGS:
                flags += [f"--{FLAGS[key]}", str(value)]
            else:
                flags += ["--set", spell_assignment(key, value)]
        return flags

    def merge(self, earlier: Mapping[str, Any]) -> TrainArguments:
        """Gives the options of a resumed run: those of `earlier`, overridden by these."""
        merged = {part: {**earlier.get(part, {}), **getattr(self, part)} for part in _PARTS}
        return dataclasses.replace(self, **merged)


def parse_arguments(argv: Sequence[str] | None) -> TrainArguments:
    """Reads command-line flags. Bad usage prints a message and exits with status 2; a bad --set
    raises ConfigError."""
    stage = _find_stage(argv)
    parser = build_parser(stage)
    known, rest = parser.parse_known_args(argv)
    if rest:
        parser.error(explain_flags(rest, stage))
    given = vars(known)
    settings = parse_assignments(given.pop("set", []))
    if "on" in given and not given.get("dry_run"):
        raise ConfigError(f"--on {given['on']} says where a --dry_run rehearses: add --dry_run")
    return _sort_arguments(given, settings, stage, spell_flag)


def collect_arguments(options: Mapping[str, Any]) -> TrainArguments:
    """Reads keyword arguments from Python: flags by name, options of the recipe, fields of the
    model, and `set`, a mapping of what --set takes. Raises ConfigError."""
    given = {name: _as_text(value) for name, value in options.items() if value is not None}
    settings = given.pop("set", {})
    if not isinstance(settings, Mapping) or not all(isinstance(key, str) for key in settings):
        raise ConfigError(f'set={settings!r}: must be a mapping, as {{"ds_config.KEY": 1}}')
    _check_kinds(given)
    if given.pop("dry_run", False) or given.pop("on", None):
        raise ConfigError(
            "dry_run=True: Run.resolve(…) with check() and describe() is a dry run, and "
            "minimind.rehearsal.rehearse(run, device, ranks) rehearses it"
        )
    stage = _choose_stage(given.get("stage"), given.get("resume", False), given.get("output_dir"))
    for name, entry in RUN_FLAGS.items():
        choices = entry.get("choices") if name in given else None
        if choices and (problem := check_choice(entry["what"], given[name], choices)):
            raise ConfigError(f"{name}={given[name]!r}: {problem}")
    for name in LISTS:
        if isinstance(given.get(name), str):
            given[name] = [given[name]]
    for name, flag in FLAGS.items():
        if flag != name and flag in given:
            if given.setdefault(name, given[flag]) != given[flag]:
                raise ConfigError(f"{flag}={given[flag]} and {name}={given[name]} contradict")
            del given[flag]
    known = {*RUN_FLAGS, *FLAGS, *CONTROLS}
    more = {name: given.pop(name) for name in list(given) if name not in known}
    return _sort_arguments(given, {**settings, **more}, stage, spell_keyword)


def _check_kinds(given: Mapping[str, Any]) -> None:
    """Raises ConfigError for a keyword argument whose type no flag has."""
    for name in RUN_FLAGS:
        value = given.get(name, "")
        lists = name in LISTS and isinstance(value, list)
        if not all(isinstance(part, str) for part in (value if lists else [value])):
            kind = "a string or a list of strings" if name in LISTS else "a string"
            more = '; set={"ds_config.KEY": …} changes the JSON' if name == "ds_config" else ""
            raise ConfigError(f"{name}={value!r}: must be {kind}{more}")
    for name in ("resume", "dry_run"):
        if not isinstance(given.get(name, False), bool):
            raise ConfigError(f"{name}={given[name]!r}: must be True or False")


def _as_text(value: Any) -> Any:
    """Gives paths, also in lists, as strings."""
    if isinstance(value, Path):
        return str(value)
    return [_as_text(part) for part in value] if isinstance(value, list | tuple) else value


def _check_names(settings: Mapping[str, Any], stage: str, spell: Spelling) -> None:
    """Raises a ConfigError that names every unknown setting with its replacement."""
    known = {*MODEL_FIELDS, *option_names(stage)}
    problems = []
    for key, value in settings.items():
        if key in known or key.startswith("ds_config."):
            continue
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        what = "--set " if spell is spell_flag else ""
        said = explain(key, text, stage, spell)
        if said.startswith((" is", ":")):
            problems.append(f"{what}{key}{said}")
        else:
            problems.append(
                f"{what}{key}: neither a field of the model nor an option of {stage}, nor "
                f"ds_config.KEY of the DeepSpeed JSON{said}; --stage {stage} --help lists all"
            )
    if problems:
        raise ConfigError("\n  ".join(problems))


def _sort_arguments(
    given: Mapping[str, Any], settings: Mapping[str, Any], stage: str, spell: Spelling
) -> TrainArguments:
    _check_names(settings, stage, spell)
    recipe: dict[str, Any] = {name: given[name] for name in FLAGS if name in given}
    model: dict[str, Any] = {}
    ds_config: dict[str, Any] = {}
    for key, value in settings.items():
        if key.startswith("ds_config."):
            ds_config[key.removeprefix("ds_config.")] = value
        elif key in MODEL_FIELDS:
            model[key] = value
        elif key in recipe and recipe[key] != value:
            raise ConfigError(
                f"{spell_option(key, recipe[key])} and --set {key}={value} contradict"
            )
        else:
            recipe[key] = value
    return TrainArguments(
        run={name: given[name] for name in RUN_FLAGS if name in given},
        recipe=recipe,
        model=model,
        ds_config=ds_config,
        resume=given.get("resume", False),
        dry_run=given.get("dry_run", False),
        local_rank=given.get("local_rank"),
        on=given.get("on"),
    )


def _find_stage(argv: Sequence[str] | None) -> str:
    """Gives --stage, or the stage of the run to resume. It is read first because the other options
    depend on it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--stage", nargs="?")
    parser.add_argument("--output_dir", nargs="?")
    parser.add_argument("--resume", action="store_true")
    known, _ = parser.parse_known_args(argv)
    return _choose_stage(known.stage, known.resume, known.output_dir)


def _choose_stage(given: str | None, resume: bool, output_dir: str | None) -> str:
    if given is None and resume and output_dir:
        # A run.json that cannot be read is reported later, when the run is resumed.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return str(load_json(Path(output_dir) / "run.json")["stage"])
    return given or "pretrain"

"""The command line of `minimind train`, built once for all stages from the recipe's fields."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from minimind.config.model import PRESETS, ModelConfig
from minimind.config.recipe import Recipe, parse_assignments
from minimind.errors import ConfigError

RECIPE_FLAGS = (
    "max_steps",
    "epochs",
    "seq_len",
    "learning_rate",
    "eval_every",
    "save_every",
    "sample_every",
    "seed",
)
"""Recipe options with a flag of their own; --set takes them and all others."""

_RUN_FLAGS: dict[str, dict[str, Any]] = {
    "stage": {"help": "training objective", "default": "pretrain"},
    "ds_config": {"help": "DeepSpeed JSON: a file, or one of ds_configs/", "default": "zero2.json"},
    "model": {"help": f"{', '.join(PRESETS)}, or a JSON file of fields", "default": "tiny"},
    "tokenizer": {"help": "folder with tokenizer.json", "default": "the sample data's own"},
    "data": {
        "help": "JSON lines; A.jsonl:0.7 B.jsonl:0.3 mixes by shares of tokens",
        "default": "the embedded sample data",
        "nargs": "+",
        "metavar": "FILE",
    },
    "val_data": {"help": "JSON lines", "default": "none", "nargs": "+", "metavar": "FILE"},
    "from_checkpoint": {
        "help": "start from these weights: a run's folder, a checkpoint in it or a Hugging Face "
        "folder; none starts fresh",
        "default": "none",
    },
    "output_dir": {"help": "the run's folder", "default": "runs/STAGE-MODEL-NUMBER"},
    "on_bad_row": {
        "help": "what a malformed row does: stop before training, or skip it and list it",
        "default": "stop",
        "choices": ("stop", "skip"),
    },
}


@dataclasses.dataclass(frozen=True, slots=True)
class TrainArguments:
    """What the user gave, and nothing he did not."""

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

    def get(self, name: str) -> Any:
        """A run flag's value; None where it has no default of its own."""
        default = _RUN_FLAGS[name]["default"]
        concrete = {"stage", "ds_config", "model", "on_bad_row"}
        return self.run.get(name, default if name in concrete else None)

    def to_dict(self) -> dict[str, Any]:
        """What run.json keeps and `merge` takes back."""
        return {
            "run": self.run,
            "recipe": self.recipe,
            "model": self.model,
            "ds_config": self.ds_config,
        }

    def merge(self, earlier: Mapping[str, Any]) -> TrainArguments:
        """A resumed run repeats what it was started with, except for what is given anew."""
        return dataclasses.replace(
            self,
            **{
                part: {**earlier.get(part, {}), **getattr(self, part)}
                for part in ("run", "recipe", "model", "ds_config")
            },
        )


def parse_train_arguments(
    argv: Sequence[str] | None, recipe_types: Mapping[str, type[Recipe]]
) -> TrainArguments:
    """Reads flags. Exits with status 2 and a message on bad usage. Raises ConfigError for a bad
    --set."""
    stage = _find_stage(argv)
    recipe_type = recipe_types.get(stage, Recipe)
    given = vars(_build_parser(recipe_types, recipe_type).parse_args(argv))
    settings = parse_assignments(given.pop("set", []))
    return _sort_arguments(given, settings, stage, recipe_type)


def collect_train_arguments(
    options: Mapping[str, Any], recipe_types: Mapping[str, type[Recipe]]
) -> TrainArguments:
    """Reads what Python gives: the flags by name, any option of the recipe or field of the model,
    and under `set` a mapping of whatever else --set takes. Raises ConfigError."""
    given = {name: _as_text(value) for name, value in options.items() if value is not None}
    settings = dict(given.pop("set", {}))
    stage = _choose_stage(given.get("stage"), given.get("resume", False), given.get("output_dir"))
    if stage not in recipe_types:
        raise ConfigError(f"stage={stage!r}: the stages are {', '.join(recipe_types)}")
    for name in ("data", "val_data"):
        if isinstance(given.get(name), str):
            given[name] = [given[name]]
    known = {*_RUN_FLAGS, *RECIPE_FLAGS, "resume", "dry_run"}
    settings |= {name: given.pop(name) for name in list(given) if name not in known}
    return _sort_arguments(given, settings, stage, recipe_types[stage])


def _as_text(value: Any) -> Any:
    """Paths as the command line has them."""
    if isinstance(value, Path):
        return str(value)
    return [_as_text(part) for part in value] if isinstance(value, list | tuple) else value


def _sort_arguments(
    given: Mapping[str, Any],
    settings: Mapping[str, Any],
    stage: str,
    recipe_type: type[Recipe],
) -> TrainArguments:
    options = {f.name for f in dataclasses.fields(recipe_type)}
    recipe: dict[str, Any] = {name: given[name] for name in RECIPE_FLAGS if name in given}
    model: dict[str, Any] = {}
    ds_config: dict[str, Any] = {}
    model_fields = {f.name for f in dataclasses.fields(ModelConfig)}
    for key, value in settings.items():
        if key.startswith("ds_config."):
            ds_config[key.removeprefix("ds_config.")] = value
        elif key in model_fields:
            model[key] = value
        elif key in options:
            if key in recipe and recipe[key] != value:
                raise ConfigError(f"--{key} {recipe[key]} and --set {key}={value} contradict")
            recipe[key] = value
        else:
            raise ConfigError(
                f"--set {key}: neither a model field ({', '.join(sorted(model_fields))}), nor an "
                f"option of {stage} ({', '.join(f.name for f in dataclasses.fields(recipe_type))})"
                ", nor ds_config.KEY"
            )
    return TrainArguments(
        run={name: given[name] for name in _RUN_FLAGS if name in given},
        recipe=recipe,
        model=model,
        ds_config=ds_config,
        resume=given.get("resume", False),
        dry_run=given.get("dry_run", False),
        local_rank=given.get("local_rank"),
    )


def _find_stage(argv: Sequence[str] | None) -> str:
    """--stage, or that of the run to go on with: it decides which options the others may be."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--stage")
    parser.add_argument("--output_dir")
    parser.add_argument("--resume", action="store_true")
    known, _ = parser.parse_known_args(argv)
    return _choose_stage(known.stage, known.resume, known.output_dir)


def _choose_stage(given: str | None, resume: bool, output_dir: str | None) -> str:
    if given is None and resume and output_dir:
        # A run.json that cannot be read is an error of the resumption, and is raised there.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            text = (Path(output_dir) / "run.json").read_text(encoding="utf-8")
            return str(json.loads(text)["stage"])
    return given or "pretrain"


def _build_parser(
    recipe_types: Mapping[str, type[Recipe]], recipe_type: type[Recipe]
) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Trains a model with one of the stages on a DeepSpeed engine.",
        epilog=_describe_options(recipe_type),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    run = parser.add_argument_group("what to train, on what")
    for name, entry in _RUN_FLAGS.items():
        options = {k: v for k, v in entry.items() if k not in ("help", "default")}
        if name == "stage":
            options["choices"] = tuple(recipe_types)
        run.add_argument(
            f"--{name}", help=f"{entry['help']} (default: {entry['default']})", **options
        )
    recipe = parser.add_argument_group("how (options of the stage; --set takes the rest)")
    hints = get_type_hints(recipe_type)
    for field in dataclasses.fields(recipe_type):
        if field.name in RECIPE_FLAGS:
            kinds = get_args(hints[field.name]) or (hints[field.name],)
            text = field.metadata["help"]
            if field.default is not None:
                text += f" (default: {field.default})"
            recipe.add_argument(f"--{field.name}", type=kinds[0], help=text, metavar="N")
    recipe.add_argument(
        "--set",
        action="append",
        metavar="KEY=VALUE",
        help="any field of the model, any option below, or ds_config.KEY of the DeepSpeed JSON",
    )
    control = parser.add_argument_group("control")
    control.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --output_dir, with the flags it was started with; a run that "
        "has no checkpoint yet starts from the beginning",
    )
    control.add_argument(
        "--dry_run", action="store_true", help="resolve everything, print it and stop"
    )
    control.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    return parser


def _describe_options(recipe_type: type[Recipe]) -> str:
    lines = ["options for --set, with their defaults:"]
    for field in dataclasses.fields(recipe_type):
        default = field.default if field.default is not dataclasses.MISSING else {}
        given = field.name if default is None else f"{field.name}={default}"
        text = f"{given}  {field.metadata['help']}"
        lines += textwrap.wrap(text, 98, initial_indent="  ", subsequent_indent="      ")
    lines += ["model fields for --set:"]
    names = ", ".join(f.name for f in dataclasses.fields(ModelConfig))
    lines += textwrap.wrap(names, 98, initial_indent="  ", subsequent_indent="  ")
    return "\n".join(lines)

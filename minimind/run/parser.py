"""Builds the flags of `minimind train` from the fields of the stages' recipes."""

from __future__ import annotations

import argparse
import dataclasses
import json
import textwrap
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, get_args, get_type_hints

from minimind.config.model import PRESETS, ModelConfig
from minimind.config.monitors import MONITORS
from minimind.config.recipe import FLAGS, Recipe
from minimind.config.spelling import did_you_mean
from minimind.data.rows import FORMAT_NAMES
from minimind.runtime.ranks import read_ranks
from minimind.stages import STAGES

RUN_FLAGS: dict[str, dict[str, Any]] = {
    "stage": {
        "help": "training objective",
        "default": "pretrain",
        "what": "stage",
        "choices": STAGES,
    },
    "ds_config": {"help": "DeepSpeed JSON: a file, or one of ds_configs/", "default": "zero2.json"},
    "model": {"help": f"{', '.join(PRESETS)}, or a JSON file of fields", "default": "tiny"},
    "tokenizer": {"help": "folder with tokenizer.json", "without": "the sample data's own"},
    "data": {
        "help": "JSON lines, a JSON array, Parquet or plain text, or a folder of them; A.jsonl:0.7 "
        "B.jsonl:0.3 mixes by shares of tokens; sample:NAME is the project's own data of that name",
        "without": "the embedded sample data",
        "nargs": "+",
        "metavar": "FILE",
    },
    "format": {
        "help": "the form of the rows of --data and --val_data, or how plain text is parted",
        "without": "the first rows of each file tell",
        "what": "form of rows",
        "choices": FORMAT_NAMES,
    },
    "val_data": {"help": "as --data", "without": "none", "nargs": "+", "metavar": "FILE"},
    "from_checkpoint": {
        "help": "start from these weights: a run's folder, a checkpoint in it or a Hugging Face "
        "folder; none starts fresh",
        "without": "none",
    },
    "output_dir": {"help": "the run's folder", "without": "runs/STAGE-MODEL-NUMBER"},
    "monitor": {
        "help": f"write the figures to {', '.join(MONITORS)} too, besides those that the DeepSpeed "
        "JSON enables; none: to none",
        "without": "the DeepSpeed JSON's",
        "nargs": "+",
        "metavar": "NAME",
    },
    "on_bad_row": {
        "help": "what a malformed row does: stop before training, or skip it and list it",
        "default": "stop",
        "what": "answer to a bad row",
        "choices": ("stop", "skip"),
    },
}
"""The flags about the run as a whole, with help texts. `default` is a value, `without` says what
happens without the flag; where a flag has `choices`, `what` names the kind of value."""
LISTS = tuple(name for name, entry in RUN_FLAGS.items() if entry.get("nargs") == "+")
"""The flags that take several values."""
CONTROLS = ("resume", "dry_run", "on")


def recipe_type(stage: str) -> type[Recipe]:
    """Gives a stage's recipe; the recipe of every stage where there is no such stage."""
    return STAGES[stage].recipe_type if stage in STAGES else Recipe


def check_choice(what: str, given: str, choices: Iterable[str]) -> str | None:
    """Gives a message about a value that is none of `choices`; None for a valid one. `what` names
    the kind of value."""
    choices = tuple(choices)
    if given in choices:
        return None
    guess = did_you_mean(given, choices)
    return f"{given!r} is no {what}{guess}; it must be one of {', '.join(choices)}"


def build_parser(stage: str) -> argparse.ArgumentParser:
    """Builds the parser of `minimind train`. --help lists the options of `stage`."""
    kind = recipe_type(stage)
    parser = _Parser(
        description="Trains a model with one of the stages on a DeepSpeed engine.",
        epilog=_describe_options(kind),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    run = parser.add_argument_group("what to train, on what")
    for name, entry in RUN_FLAGS.items():
        options = {k: v for k, v in entry.items() if k in ("nargs", "metavar")}
        if choices := entry.get("choices"):
            options["type"] = _choice(entry["what"], choices)
            options["metavar"] = "{" + ",".join(choices) + "}"
        default = entry.get("default") or entry["without"]
        run.add_argument(f"--{name}", help=f"{entry['help']} (default: {default})", **options)
    recipe = parser.add_argument_group("how (options of the stage; --set takes the rest)")
    hints = get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name, flag in FLAGS.items():
        kinds = get_args(hints[name]) or (hints[name],)
        text = fields[name].metadata["help"]
        if fields[name].default is not None:
            text += f" (default: {fields[name].default})"
        recipe.add_argument(f"--{flag}", dest=name, type=kinds[0], help=text, metavar="N")
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
        "--dry_run",
        action="store_true",
        help="resolve and check everything, rehearse a step without computing it, print what it "
        "holds, launches and waits for, and stop",
    )
    control.add_argument(
        "--on",
        metavar="DEVICE[:RANKS]",
        help="where a --dry_run rehearses, such as h200:8, a100 or cpu:2 (default: here)",
    )
    control.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Reports the error once, not on every rank, and without the usage of all flags."""
        text = f"{self.prog}: error: {message}\n(--help lists all flags and options)\n"
        self.exit(2, text if read_ranks().is_main else None)


def _choice(what: str, choices: Iterable[str]) -> Callable[[str], str]:
    def check(given: str) -> str:
        if problem := check_choice(what, given, choices):
            raise argparse.ArgumentTypeError(problem)
        return given

    return check


def _describe_options(kind: type[Recipe]) -> str:
    lines = ["options for --set, with their defaults:"]
    for field in dataclasses.fields(kind):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = json.dumps(field.default_factory())
        given = field.name if default is None else f"{field.name}={default}"
        text = f"{given}  {field.metadata['help']}"
        lines += textwrap.wrap(text, 98, initial_indent="  ", subsequent_indent="      ")
    lines += ["model fields for --set:"]
    names = ", ".join(f.name for f in dataclasses.fields(ModelConfig))
    lines += textwrap.wrap(names, 98, initial_indent="  ", subsequent_indent="  ")
    return "\n".join(lines)

"""Explains names that are not known: what replaces them, or which name was probably meant."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

from minimind.config.deepspeed_keys import KNOWN_KEYS
from minimind.config.model import ModelConfig
from minimind.config.monitors import MONITORS
from minimind.config.recipe import FLAGS
from minimind.config.spelling import did_you_mean
from minimind.run.migration import EXPLAINED, RENAMED
from minimind.run.parser import CONTROLS, RUN_FLAGS, recipe_type
from minimind.stages import STAGES

MODEL_FIELDS = tuple(field.name for field in dataclasses.fields(ModelConfig))
Spelling = Callable[[str, str], str]
"""Writes a name, with a value unless that is "", as the user has to give it."""


def spell_flag(name: str, value: str) -> str:
    """Writes a name as a command-line flag."""
    if name in CONTROLS:
        return f"--{name}"
    if name in RUN_FLAGS or name in FLAGS:
        return f"--{FLAGS.get(name, name)}" + (f" {value}" if value else "")
    return f"--set {name}={value or 'VALUE'}"


def spell_keyword(name: str, value: str) -> str:
    """Writes a name as a Python keyword."""
    return FLAGS.get(name, name)


def option_names(stage: str) -> tuple[str, ...]:
    """Gives the names of a stage's options; those of every stage where there is no such stage."""
    return tuple(field.name for field in dataclasses.fields(recipe_type(stage)))


def _split(rest: Iterable[str]) -> list[tuple[str, str]]:
    """Splits arguments that argparse did not know into (flag, values); a stray word becomes ("",
    word)."""
    found: list[tuple[str, str]] = []
    for token in rest:
        if token.startswith("--"):
            flag, _, value = token.partition("=")
            found.append((flag, value))
        elif found and found[-1][0]:
            flag, value = found[-1]
            found[-1] = (flag, f"{value} {token}".strip())
        else:
            found.append(("", token))
    return found


def explain_flags(rest: Iterable[str], stage: str) -> str:
    """Writes one message about all flags and stray words that argparse did not know."""
    lines = []
    for flag, value in _split(rest):
        if flag:
            name = flag.removeprefix("--").replace("-", "_")
            lines.append(f"{flag}{explain(name, value, stage, spell_flag)}")
        else:
            meant = f"--set {value} is one flag" if "=" in value else "a flag begins with --"
            lines.append(f"{value!r} stands alone: {meant}")
    if len(lines) == 1:
        return f"unknown flag: {lines[0]}" if lines[0].startswith("--") else lines[0]
    return "unknown flags:" + "".join(f"\n  {line}" for line in lines)


def explain(name: str, value: str, stage: str, spell: Spelling) -> str:
    """Gives the advice that follows an unknown name in a message."""
    of_flags = {flag: option for option, flag in FLAGS.items()}
    known = {*RUN_FLAGS, *CONTROLS, *of_flags, *option_names(stage), *MODEL_FIELDS}
    name_here = RENAMED.get(name, of_flags.get(name, name))
    if name_here in known:
        return f" is {spell(name_here, value)} here"
    if name in EXPLAINED:
        return f": {EXPLAINED[name]}"
    if name in MONITORS:
        return f": {spell('monitor', name)}"
    if stages := [other for other in STAGES if name_here in option_names(other)]:
        given = spell(name_here, value)
        return f" is an option of --stage {' and '.join(stages)}, not of {stage}: {given}"
    if name.split(".")[0] in KNOWN_KEYS:
        return f" is a key of the DeepSpeed JSON: --set ds_config.{name}={value or 'VALUE'}"

    def spell_briefly(known_name: str) -> str:
        return spell(of_flags.get(known_name, known_name), "").removesuffix("=VALUE")

    return did_you_mean(name, known, spell_briefly)

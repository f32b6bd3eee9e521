"""Defines the fields of the steps that do not train: the flags of the command, except those that
the pipeline fills in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_type_hints

from minimind.config.spelling import did_you_mean
from minimind.config.typed import convert
from minimind.errors import ConfigError

OptionsT = TypeVar("OptionsT")
OnBadRow = Literal["stop", "skip"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFields:
    """Holds the fields of a step that trains a tokenizer: flags of `minimind tokenizer`."""

    data: tuple[str, ...]
    format: str | None = None
    vocab_size: int = 6400
    max_bytes: int = 0
    on_bad_row: OnBadRow = "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateFields:
    """Holds the fields of a step that evaluates models: flags of `minimind evaluate`."""

    data: tuple[str, ...] = ()
    format: Literal["text", "chat"] = "text"
    seq_len: int = 1024
    max_rows: int = 0
    on_bad_row: OnBadRow = "stop"
    choices: str | None = None
    examples: str | None = None
    num_examples: int | None = None
    tasks: tuple[str, ...] = ()
    task_folder: str | None = None
    max_questions: int | None = None
    prompts: tuple[str, ...] = ()
    chat: bool = False
    max_new_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertFields:
    """Holds the fields of a step that converts a model: flags of `minimind convert`."""

    to: str
    dtype: str | None = None
    base_name: str | None = None
    generation: str | None = None
    allow_custom_code: bool = False
    quantize: str | None = None
    modelfile: bool = False


def read_fields(kind: type[OptionsT], values: Mapping[str, Any], where: str) -> OptionsT:
    """Reads the fields of a step. Raises ConfigError, whose message begins with `where`, for an
    unknown or missing name and for a value of a wrong type."""
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints, read = get_type_hints(kind), dict[str, Any]()
    for name, value in values.items():
        if name not in fields:
            guess = did_you_mean(name, fields)
            raise ConfigError(f"{where}: unknown field {name}{guess}; known: {', '.join(fields)}")
        if isinstance(value, str) and hints[name] == tuple[str, ...]:
            value = [value]
        read[name] = convert(value, hints[name], f"{where}: {name}")
    for name, field in fields.items():
        if field.default is dataclasses.MISSING and not read.get(name):
            raise ConfigError(f"{where}: needs the field {name}")
    return kind(**read)


def spell_flags(fields: Any) -> list[str]:
    """Writes the fields that differ from their defaults as flags of the command."""
    flags: list[str] = []
    for field in dataclasses.fields(fields):
        value = getattr(fields, field.name)
        if value == field.default:
            continue
        flags.append(f"--{field.name}")
        if isinstance(value, tuple):
            flags += value
        elif value is not True:
            flags.append(str(value))
    return flags

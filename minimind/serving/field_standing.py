"""Describes how each field of a request is treated: it is honoured, refused with its own message,
without effect on the text, or unknown. Schemas declare this beside each field; no other list of
fields exists."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import (
    BaseModel,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidatorFunctionWrapHandler,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

Standing = Literal["honoured", "refused", "no effect"]

UNSUPPORTED = "unsupported_parameter"
"""OpenAI's code for a field that a model does not support."""


class Refused:
    """Annotates a field that would change the text and cannot be honoured. Values that request
    nothing are accepted."""

    def __init__(self, why: str, *off: Any) -> None:
        """Takes the alternative that the API offers (`why`), and the accepted values besides null
        (`off`)."""
        self.why, self.off = why, (None, *off)

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"enum": list(self.off), "description": f"Not supported: {self.why}."}

    def _check(self, value: Any) -> Any:
        if not _is_one_of(value, self.off):
            raise PydanticCustomError(UNSUPPORTED, "is not supported: {why}", {"why": self.why})
        return value


class NoEffect:
    """Annotates a field that may hold anything and changes nothing of the text."""

    def __init__(self, why: str) -> None:
        self.why = why

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.any_schema()

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"description": f"Without effect on the text: {self.why}."}


class Off:
    """Annotates a field with the values that count as not given, as other servers read them."""

    def __init__(self, *values: Any) -> None:
        self.values = values

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._read, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"anyOf": [handler(schema), {"enum": list(self.values)}]}

    def _read(self, value: Any) -> Any:
        return None if _is_one_of(value, self.values) else value


class OthersRefused:
    """Annotates a Literal of kinds: kinds that only other servers have are refused by name."""

    def __init__(self, why: str) -> None:
        self.why = why

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        def check(kind: Any) -> Any:
            if isinstance(kind, str) and kind not in get_args(source):
                texts = {"kind": kind, "why": self.why}
                raise PydanticCustomError(UNSUPPORTED, "{kind} is not supported: {why}", texts)
            return kind

        return core_schema.no_info_before_validator_function(check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return handler(schema)


class ByType:
    """Annotates a union of parts that differ in `type`, so that errors concern the named part
    alone; a type that no part has is refused by name."""

    def __init__(self, unsaid: str | None = None) -> None:
        """Takes the type (`unsaid`) of a part without one."""
        self.unsaid = unsaid

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        parts = {
            get_args(part.model_fields["type"].annotation)[0]: part
            for part in get_args(source)
            if isinstance(part, type) and issubclass(part, BaseModel)
        }

        def read(value: Any, read_any: ValidatorFunctionWrapHandler) -> Any:
            if not isinstance(value, dict):
                return read_any(value)
            kind = value.get("type", self.unsaid)
            if not isinstance(kind, str) or kind not in parts:
                texts = {"kind": repr(kind), "kinds": ", ".join(map(repr, parts))}
                words = "type {kind} is not supported: it must be one of {kinds}"
                raise PydanticCustomError(UNSUPPORTED, words, texts)
            return parts[kind].model_validate({**value, "type": kind})

        return core_schema.no_info_wrap_validator_function(read, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return handler(schema)


def _is_one_of(value: Any, values: tuple[Any, ...]) -> bool:
    """Compares value and type, so that True is not 1."""
    return any(type(value) is type(one) and value == one for one in values)


@dataclass(frozen=True, slots=True)
class FieldStanding:
    name: str
    standing: Standing
    note: str
    off: tuple[Any, ...] = ()
    """The values besides null that mean "not given"."""


def field_standings(schema: type[BaseModel]) -> list[FieldStanding]:
    """Lists the treatment of every field of a request's schema, in its order."""
    found = []
    for name, field in schema.model_fields.items():
        standing: Standing = "honoured"
        note, off = field.description or "", ()
        for mark in field.metadata:
            if isinstance(mark, Refused):
                standing, note, off = "refused", mark.why, mark.off[1:]
            elif isinstance(mark, NoEffect):
                standing, note = "no effect", mark.why
            elif isinstance(mark, Off):
                off = mark.values
        found.append(FieldStanding(name, standing, " ".join(note.split()), off))
    return found


def unknown_fields(given: BaseModel) -> list[str]:
    """Lists the fields that a client sent and no schema knows, each once, as in
    `messages[].weight`."""
    return list(dict.fromkeys(_unknown(given, "")))


def _unknown(value: Any, where: str) -> Iterator[str]:
    if isinstance(value, BaseModel):
        inside = f"{where}." if where else ""
        for name in value.model_extra or ():
            yield f"{inside}{name}"
        for name in value.model_fields_set:
            if name in type(value).model_fields:
                yield from _unknown(getattr(value, name), f"{inside}{name}")
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, BaseModel | list):
                yield from _unknown(item, f"{where}[]")

"""Marks how a field of a request is treated: it is refused with a message of its own, or without
effect on the text. A field without a mark is honoured, one that no schema has is unknown. Schemas
declare this beside each field; there is no other list of fields."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import (
    BaseModel,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidatorFunctionWrapHandler,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

UNSUPPORTED = "unsupported_parameter"
"""OpenAI's error code for a field that a model does not support."""


class Refused:
    """Marks a field that would change the text but cannot be honoured, and so is refused. Values
    that ask for nothing are accepted."""

    def __init__(self, why: str, *off: Any) -> None:
        """`why` says what the client can send instead; `off` are the accepted values besides
        null."""
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
    """Marks a field that may have any value and does not change the text."""

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
    """Marks the values of a field that count as not given, as other servers treat them."""

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
    """Marks a Literal of kinds: a kind that only other servers have is refused by its name."""

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


class ByType:
    """Marks a union whose members differ in `type`, so that errors are about the member that was
    sent. A type that no member has is refused by its name."""

    def __init__(self, unsaid: str | None = None) -> None:
        """`unsaid` is the type of a value that does not give one."""
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


def _is_one_of(value: Any, values: tuple[Any, ...]) -> bool:
    """Tells whether `value` is one of `values`, with the same type: True is not 1."""
    return any(type(value) is type(one) and value == one for one in values)


def unknown_fields(given: BaseModel) -> list[str]:
    """Lists the fields that a client sent and no schema has, each once, such as
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

"""Makes the tables of docs/request_fields.md: how the server treats each field of a request. They
are made from the schemas that requests are read by."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from bench.harness import plain_table
from minimind.serving.field_standing import NoEffect, Off, Refused
from minimind.serving.message_schemas import ContentPart, Function, Message
from minimind.serving.request_schemas import ChatRequest, StreamOptions
from minimind.serving.responses_schemas import InputItem, ResponsesRequest
from minimind.serving.text_schemas import (
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    TokenizeRequest,
)

CALLS: Mapping[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/responses": ResponsesRequest,
    "/v1/embeddings": EmbeddingRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}
PARTS: Mapping[str, type[BaseModel]] = {
    "messages[]": Message,
    "input[]": InputItem,
    "…content[]": ContentPart,
    "tools[].function": Function,
    "stream_options": StreamOptions,
}


@dataclass(frozen=True, slots=True)
class FieldStanding:
    """Says how a field of a request is treated."""

    name: str
    standing: Literal["honoured", "refused", "no effect"]
    note: str
    off: tuple[Any, ...] = ()
    """The values, besides null, that count as not given."""


def field_standings(schema: type[BaseModel]) -> list[FieldStanding]:
    """Lists how every field of a request's schema is treated, in the schema's order."""
    found = []
    for name, field in schema.model_fields.items():
        standing, note, off = "honoured", field.description or "", ()
        for mark in field.metadata:
            if isinstance(mark, Refused):
                standing, note, off = "refused", mark.why, mark.off[1:]
            elif isinstance(mark, NoEffect):
                standing, note = "no effect", mark.why
            elif isinstance(mark, Off):
                off = mark.values
        found.append(FieldStanding(name, standing, " ".join(note.split()), off))
    return found


def calls_section() -> str:
    """Makes a line for each field of the calls' bodies."""
    return _fields_table(CALLS)


def parts_section() -> str:
    """Makes a line for each field of the objects within them."""
    return _fields_table(PARTS)


def _fields_table(schemas: Mapping[str, type[BaseModel]]) -> str:
    found: dict[str, dict[str, FieldStanding]] = {}
    for place, schema in schemas.items():
        for field in field_standings(schema):
            found.setdefault(field.name, {})[place] = field
    rows = []
    for name, places in found.items():
        cells = [places[place].standing if place in places else "" for place in schemas]
        rows.append((f"`{name}`", *cells, _notes(places.values())))
    return plain_table(("field", *(f"`{place}`" for place in schemas), ""), rows)


def _notes(fields: Iterable[FieldStanding]) -> str:
    notes = []
    for field in fields:
        off = ", ".join(f"`{json.dumps(value)}`" for value in field.off)
        text = "; ".join(part for part in (field.note.rstrip("."), off and f"*off*: {off}") if part)
        notes.append(text)
    return " · ".join(dict.fromkeys(note for note in notes if note))

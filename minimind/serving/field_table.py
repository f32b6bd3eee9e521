"""Writes docs/request_fields.md, the table of how each field of a request is treated: `python -m
minimind.serving.field_table`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping

from pydantic import BaseModel

from minimind.serving.field_standing import FieldStanding, field_standings
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
_HEAD = """\
# What becomes of each field of a request

Generated from the server's schemas (`python -m minimind.serving.field_table`), and tested.

**honoured**: the text is what the field asks for. **refused**: 400 with the code
`unsupported_parameter` and the words below, unless the value asks for nothing (null, and what
stands behind *off*). **no effect**: anything is taken, and the text does not depend on it. A
field without an entry is unknown to that call: the answer comes without it, and the header
`x-ignored-fields` and the log name it, as they name unknown fields within these. *off* with an
honoured field: not given.
"""


def field_table() -> str:
    """Gives the table in Markdown."""
    return "\n".join((_HEAD, "## Calls\n", *_rows(CALLS), "\n## Within them\n", *_rows(PARTS), ""))


def _rows(schemas: Mapping[str, type[BaseModel]]) -> list[str]:
    found: dict[str, dict[str, FieldStanding]] = {}
    for place, schema in schemas.items():
        for field in field_standings(schema):
            found.setdefault(field.name, {})[place] = field
    rows = [
        "| field | " + " | ".join(f"`{place}`" for place in schemas) + " | |",
        "|---" * (len(schemas) + 2) + "|",
    ]
    for name, places in found.items():
        cells = [_cell(places.get(place)) for place in schemas]
        rows.append(f"| `{name}` | {' | '.join(cells)} | {_notes(places.values())} |")
    return rows


def _cell(field: FieldStanding | None) -> str:
    return "" if field is None else field.standing


def _notes(fields: Iterable[FieldStanding]) -> str:
    notes = []
    for field in fields:
        off = ", ".join(f"`{json.dumps(value)}`" for value in field.off)
        text = "; ".join(part for part in (field.note.rstrip("."), off and f"*off*: {off}") if part)
        notes.append(text)
    return " · ".join(dict.fromkeys(note for note in notes if note)).replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(field_table())

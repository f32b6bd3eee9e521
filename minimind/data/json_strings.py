"""Parses JSON in the strings of a row: tools, calls and their arguments, whole conversations."""

from __future__ import annotations

import json
import re
from typing import Any

from minimind.config import json_file
from minimind.data.jsonl import RowProblem, json_type

_PYTHON = re.compile(r"\s*(?:\[\s*)?\{\s*'")


def parse_json(text: str, what: str) -> Any:
    """Parses JSON. Raises RowProblem, which calls the text `what`, where it is not JSON or an
    object repeats a key."""
    try:
        return json_file.parse_json(text, object_pairs_hook=json_file.no_duplicates)
    except json.JSONDecodeError as error:
        hint = ""
        if _PYTHON.match(text):
            hint = " (it is Python's text of a value: write it with json.dumps)"
        raise RowProblem(f"{what} is not JSON: {error}{hint}") from None
    except ValueError as error:
        raise RowProblem(f"{what} is not usable JSON: {error}") from None


def read_objects(value: object, what: str) -> list[dict[str, Any]]:
    """Gives the objects in a list of objects, in JSON of such a list, or in a list of JSON texts.
    Raises RowProblem."""
    if isinstance(value, str):
        value = parse_json(value, what) if value.strip() else []
    if not isinstance(value, list):
        hint = ": write [{…}] around it" if isinstance(value, dict) else ""
        raise RowProblem(f"{what} is not a list of objects, but {json_type(value)}{hint}")
    items: list[Any] = [
        parse_json(item, f"{what} {number}")
        if isinstance(item, str) and item.lstrip().startswith("{")
        else item
        for number, item in enumerate(value, start=1)
    ]
    for number, item in enumerate(items, start=1):
        if not isinstance(item, dict):
            raise RowProblem(
                f"{what} is not a list of objects: number {number} is {json_type(item)}, and "
                'should be as {"name": …}'
            )
    check_json(items, what)
    return items


def check_json(value: object, what: str) -> None:
    """Raises RowProblem for values that JSON cannot express and a model would learn to write: NaN,
    Infinity, and the dates and bytes of a Parquet file."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        raise RowProblem(
            f"{what} holds NaN or Infinity, or a number as large, for which JSON has no word: "
            "write null or a text, or leave it out"
        ) from None
    except TypeError as error:
        raise RowProblem(f"{what} holds what is no JSON: {error}; write it as a text") from None
    except RecursionError:
        raise RowProblem(f"{what} is nested too deeply") from None

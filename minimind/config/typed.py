"""Converts values from JSON, flags and Python to the declared types of fields."""

from __future__ import annotations

import json
from typing import Any

from minimind.errors import ConfigError

_WORDS = {"a valid array": "a list", "an object": "a table"}
"""Replaces pydantic's names of types by names that users know."""


def convert(value: Any, hint: Any, where: str) -> Any:
    """Converts `value` to the type `hint`: a whole number to a float and a list to a tuple, but
    never a text to a number. Raises ConfigError, whose message begins with `where`."""
    from pydantic import TypeAdapter, ValidationError  # a tenth of a second

    try:
        return TypeAdapter(hint).validate_json(json.dumps(value, default=repr), strict=True)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        place = where + "".join(f"[{key}]" for key in wrong["loc"])
        start, _, wanted = wrong["msg"].partition("Input should be ")
        if start:  # pydantic's message about a list that is too short or too long
            raise ConfigError(f"{place} of {value!r}: {start}") from None
        raise ConfigError(
            f"{place} is {wrong['input']!r}; it must be {_WORDS.get(wanted, wanted)}"
        ) from None

"""Holds the forms that tests ask answers in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, Field

USER: list[Any] = [{"role": "user", "content": "你好"}]


class Person(BaseModel):
    """Somebody in a town."""

    name: str = Field(max_length=5)
    age: int = Field(ge=0, le=99)
    likes: Literal["tea", "苹果"]


SCHEMA = Person.model_json_schema()


def tool(name: str = "Person", parameters: Any = SCHEMA, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


TOOLS = [tool(), tool("now", None)]
FORMAT = {"type": "json_schema", "json_schema": {"name": "p", "schema": SCHEMA, "strict": True}}

Ask = Callable[..., Any]

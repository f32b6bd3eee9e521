"""Answers in a form through the libraries that people ask for them with."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from answer_forms import USER, Person
from live_servers import LiveServer

from minimind.data.tokenizer import Tokenizer


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_langchain(roomy: LiveServer, tokenizer: Tokenizer, method: Any) -> None:
    chat = pytest.importorskip("langchain_openai").ChatOpenAI(
        base_url=f"{roomy.url}/v1", api_key="none", model="tiny", seed=1, max_retries=0,
        # JSON mode holds no schema: an object ends as soon as it may.
        **({"logit_bias": _ends_soon(tokenizer)} if method == "json_mode" else {}),
    )  # fmt: skip
    if method == "json_mode":
        found = chat.with_structured_output(None, method=method).invoke("as JSON")
        assert isinstance(found, dict)
    else:
        assert isinstance(chat.with_structured_output(Person, method=method).invoke("x"), Person)


@pytest.mark.parametrize("kind", ["plain", "NativeOutput", "ToolOutput"])
def test_pydantic_ai(roomy: LiveServer, kind: str) -> None:
    ai = pytest.importorskip("pydantic_ai")
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=f"{roomy.url}/v1", api_key="none")
    output = Person if kind == "plain" else getattr(ai, kind)(Person)
    agent = ai.Agent(OpenAIChatModel("tiny", provider=provider), output_type=output, retries=0)
    found = asyncio.run(agent.run("x")).output
    assert isinstance(found, Person)


@pytest.mark.parametrize("mode", ["TOOLS", "TOOLS_STRICT", "JSON_SCHEMA"])
def test_instructor(roomy_client: openai.OpenAI, mode: str) -> None:
    """Not among what `make` installs: its releases want an older openai."""
    instructor = pytest.importorskip("instructor")
    asked = instructor.from_openai(roomy_client, mode=getattr(instructor.Mode, mode))
    found = asked.chat.completions.create(
        model="tiny", messages=USER, response_model=Person, max_retries=0
    )
    assert isinstance(found, Person)


def _ends_soon(tokenizer: Tokenizer) -> dict[str, int]:
    """Quotes, colons and braces are likely, what opens more is not."""
    likely = {'"': 9, "}": 9, '": ': 9, "{": -9, "[": -9, "]": 9, "1": 5}
    return {str(i): bias for text, bias in likely.items() for i in tokenizer.encode(text)}

"""The server does what its own OpenAPI description says, whatever schemathesis makes of it."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from generated_cases import GENERATED
from hypothesis import given, settings
from live_servers import LiveServer
from schemathesis import GenerationMode

CALLS = [
    ("GET", "/health"),
    ("GET", "/metrics"),
    ("GET", "/version"),
    ("GET", "/tokenizer_info"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{name}"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/responses"),
    ("POST", "/v1/embeddings"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
]
NO_SCHEMA_SAYS = (None, "context_length_exceeded")
"""Codes of what is refused for reasons a schema cannot hold: the length of a text in tokens, half
characters, the order of turns."""


@pytest.fixture(scope="module")
def description(tiny: LiveServer) -> Any:
    return schemathesis.openapi.from_url(f"{tiny.url}/openapi.json")


def test_every_call_is_tested(description) -> None:
    found = [
        (call.ok().method.upper(), call.ok().path) for call in description.get_all_operations()
    ]
    assert sorted(found) == sorted(CALLS)


@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [
        (method, path, mode)
        for method, path in CALLS
        # Nothing about a call without a body can be wrong.
        for mode in (list(GenerationMode) if method == "POST" else [GenerationMode.POSITIVE])
    ],
)
def test_calls_are_answered_as_described(
    description, method: str, path: str, mode: GenerationMode
) -> None:
    cases = description[path][method].as_strategy(generation_mode=mode)

    @settings(GENERATED, max_examples=20 if method == "POST" else 5, derandomize=True)
    @given(case=cases)
    def check(case: Any) -> None:
        if mode is GenerationMode.POSITIVE and method == "POST":
            case.body["model"] = "tiny"
        response = case.call(timeout=30)
        if mode is GenerationMode.POSITIVE and response.status_code == 400:
            assert response.json()["error"]["code"] in NO_SCHEMA_SAYS, response.text
            return
        case.validate_response(response)

    check()

"""What becomes of each field of a request is what the schemas and the documents' table say."""

from __future__ import annotations

import math
from typing import Any

import httpx2 as httpx
import pytest
from live_servers import ScriptedEngine
from pydantic import ValidationError

from bench.report.request_fields import CALLS, PARTS, FieldStanding, field_standings

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/embeddings": {"input": "hi"},
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [70]},
}
GENERATING = [path for path in CALLS if path.startswith("/v1") and "embeddings" not in path]
ODD = [{"a": [1, "x"]}, "odd", 7.5, True, [{}]]


@pytest.mark.parametrize("path", CALLS)
@pytest.mark.parametrize("value", ODD)
def test_refusals_are_in_their_own_words(path: str, value: object) -> None:
    refused = {field.name: field for field in _of_kind(path, "refused")}
    refused = {name: field for name, field in refused.items() if value not in field.off}
    if not refused:
        return
    with pytest.raises(ValidationError) as raised:
        CALLS[path].model_validate(BODIES[path] | dict.fromkeys(refused, value))
    problems = {problem["loc"][0]: problem for problem in raised.value.errors()}
    assert set(problems) == set(refused)
    for name, field in refused.items():
        assert problems[name]["msg"] == f"is not supported: {field.note}"
        assert problems[name]["type"] == "unsupported_parameter"
        assert not _is_training_talk(field.note)


@pytest.mark.parametrize("path", GENERATING)
def test_a_refusal_as_the_client_reads_it(shared: tuple[str, ScriptedEngine], path: str) -> None:
    response = httpx.post(shared[0] + path, json=BODIES[path] | {"typical_p": 0.5})
    assert response.status_code == 400
    assert response.json()["error"] == {
        "message": "typical_p is not supported: send `min_p`",
        "type": "invalid_request_error",
        "param": "typical_p",
        "code": "unsupported_parameter",
    }


@pytest.mark.parametrize("path", GENERATING)
def test_what_changes_nothing_and_asks_for_nothing(
    shared: tuple[str, ScriptedEngine], path: str
) -> None:
    """Fields without effect whatever they hold; the others where they say that they are off."""
    url, engine = shared
    fields = [field for field in field_standings(CALLS[path]) if field.name not in BODIES[path]]
    offs = {field.name: field.off for field in fields}
    changes: list[dict[str, Any]] = [{}, dict.fromkeys(offs)]
    changes += [
        {name: off[number] for name, off in offs.items() if number < len(off)}
        for number in range(max(map(len, offs.values())))
    ]
    free = [field.name for field in fields if field.standing == "no effect"]
    changes += [dict.fromkeys(free, value) for value in ODD]
    found = []
    for change in changes:
        response = httpx.post(url + path, json=BODIES[path] | change)
        assert response.status_code == 200, (change, response.text)
        assert "x-ignored-fields" not in response.headers
        found.append(engine.requests[-1])
    assert all(request == found[0] for request in found)


def test_no_field_hides_another() -> None:
    for schema in (*CALLS.values(), *PARTS.values()):
        names = [field.name for field in field_standings(schema)]
        assert len(names) == len(set(names))


def test_refusals_within_messages(shared: tuple[str, ScriptedEngine]) -> None:
    url = f"{shared[0]}/v1/chat/completions"
    for message, said in (
        ({"audio": {"id": "a"}}, "messages[0].audio is not supported: the model reads text"),
        (
            {"content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            "messages[0].content[0].type image_url is not supported: the model reads text alone",
        ),
        ({"role": "critic"}, "messages[0].role: Input should be 'system', 'developer', 'user'"),
        ({"content": 3}, "messages[0].content: Input should be a valid string or Input should be"),
        ({"content": math.pi}, "messages[0].content: "),
    ):
        body = {"messages": [{"role": "user", "content": "hi"} | message]}
        error = httpx.post(url, json=body).json()["error"]
        assert error["message"].startswith(said)
        assert not _is_training_talk(error["message"])


def _of_kind(path: str, standing: str) -> list[FieldStanding]:
    return [field for field in field_standings(CALLS[path]) if field.standing == standing]


def _is_training_talk(text: str) -> bool:
    return any(word in text for word in ("row", "train", "turn ", "learn", "line "))

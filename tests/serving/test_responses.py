"""The responses API, by the official client: text, thoughts and tools, whole and streamed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx2 as httpx
import openai
import pytest
from live_servers import LiveServer, ScriptedEngine
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from minimind.data.tokenizer import Tokenizer

TOOL = {
    "type": "function", "name": "weather", "description": "of a town", "strict": None,
    "parameters": {"type": "object", "properties": {"town": {"type": "string"}}},
}  # fmt: skip
CALL = '<tool_call>\n{"name": "weather", "arguments": {"town": "塔恩"}}\n</tool_call>'
Scripted = Callable[..., tuple[openai.OpenAI, ScriptedEngine]]


def check(response: Response) -> None:
    """Against the client's own types, which it does not check itself."""
    TypeAdapter(Response).validate_python(response.model_dump(warnings=False), strict=False)


@pytest.mark.parametrize("piece", [1, 1000])
def test_a_text(scripted: Scripted, tokenizer: Tokenizer, piece: int) -> None:
    client, engine = scripted("The river is the 塞拉河.", piece=piece)
    ask: dict[str, Any] = {"model": "tiny", "input": "Which river?", "instructions": "Be brief."}
    whole = client.responses.create(**ask, max_output_tokens=50, metadata={"a": "b"})
    check(whole)
    assert whole.output_text == engine.text
    assert (whole.status, whole.metadata, whole.error) == ("completed", {"a": "b"}, None)
    assert whole.usage is not None
    assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens
    prompt = tokenizer.decode(engine.requests[0].prompt_ids)
    assert prompt.startswith("system\nBe brief.\nuser\nWhich river?\nassistant\n")
    assert engine.requests[0].params.max_new_tokens == 50
    with client.responses.stream(**ask) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == engine.text
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == engine.text


def test_events_are_those_that_the_client_knows(scripted: Scripted) -> None:
    text = f"so\n</think>\n\nI ask.\n{CALL}\n{CALL}"
    client, _ = scripted(text, piece=5)
    url = str(client.base_url) + "responses"
    body = {"input": "hi", "tools": [TOOL], "reasoning": {"effort": "low"}, "stream": True}
    raw = httpx.post(url, json=body).text
    assert "[DONE]" not in raw
    kinds, numbers = [], []
    for event in raw.strip().split("\n\n"):
        name, data = (line.partition(": ")[2] for line in event.split("\n"))
        found = json.loads(data)
        assert found["type"] == name
        TypeAdapter(ResponseStreamEvent).validate_python(found)
        numbers.append(found["sequence_number"])
        if not kinds or kinds[-1] != name:
            kinds.append(name)
    assert numbers == list(range(len(numbers)))

    def item(text: str) -> list[str]:
        return [
            "output_item.added", "content_part.added", f"{text}.delta", f"{text}.done",
            "content_part.done", "output_item.done",
        ]  # fmt: skip

    arguments = ["function_call_arguments.delta", "function_call_arguments.done"]
    call = ["output_item.added", *arguments, "output_item.done"]
    expected = ["created", "in_progress", *item("reasoning_text"), *item("output_text")]
    expected += [*call, *call, "completed"]
    assert kinds == [f"response.{kind}" for kind in expected]


@pytest.mark.parametrize("stream", [False, True])
def test_tools_and_thoughts(scripted: Scripted, tokenizer: Tokenizer, stream: bool) -> None:
    client, engine = scripted(f"so\n</think>\n\nI ask.\n{CALL}", piece=3)
    ask: dict[str, Any] = {"model": "tiny", "tools": [TOOL], "reasoning": {"effort": "high"}}
    question = {"role": "user", "content": [{"type": "input_text", "text": "weather?"}]}
    if stream:
        with client.responses.stream(input=[question], **ask) as events:
            response = events.get_final_response()
    else:
        response = client.responses.create(input=[question], **ask)
        check(response)
    thought, said, call = response.output
    assert thought.type == "reasoning"
    assert thought.content is not None
    assert thought.content[0].text == "so"
    assert response.output_text == "I ask."
    assert said.type == "message"
    assert call.type == "function_call"
    assert json.loads(call.arguments) == {"town": "塔恩"}
    assert response.usage is not None
    assert response.usage.output_tokens_details.reasoning_tokens == len(tokenizer.encode("so"))
    # All of it goes back, as the client writes it.
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    history = [question, *(one.model_dump() for one in response.output), result]
    client.responses.create(input=history, **ask)
    prompt = tokenizer.decode(engine.requests[-1].prompt_ids)
    assert f"assistant\n<think>\nso\n</think>\n\nI ask.\n{CALL}\n" in prompt
    assert prompt.endswith("<tool_response>\nsunny\n</tool_response>\nassistant\n<think>\n")


def test_an_answer_that_is_cut_off(client: openai.OpenAI) -> None:
    whole = client.responses.create(model="tiny", input="hi", max_output_tokens=3, temperature=0)
    assert whole.status == "incomplete"
    assert whole.incomplete_details is not None
    assert whole.incomplete_details.reason == "max_output_tokens"
    events = list(
        client.responses.create(
            model="tiny", input="hi", max_output_tokens=3, temperature=0, stream=True
        )
    )
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.output_text == whole.output_text


def test_an_error_on_the_way_is_one(scripted: Scripted) -> None:
    client, _ = scripted("x", error=ValueError("bug"))
    with pytest.raises(openai.APIError, match="the model failed"):
        list(client.responses.create(model="tiny", input="hi", stream=True))


def test_an_empty_answer_is_a_message(scripted: Scripted) -> None:
    client, _ = scripted("")
    response = client.responses.create(model="tiny", input="hi")
    assert [item.type for item in response.output] == ["message"]
    assert response.output_text == ""


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"previous_response_id": "r"}, "previous_response_id", "send the whole conversation"),
        ({"background": True}, "background", "background is not supported"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "web_search is not supported"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type", "item_reference is"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0].type",
            "input_image is not supported: the model reads text alone",
        ),
        ({"input": []}, "input", "at least 1"),
        ({"input": [{"content": "x"}]}, "input[0].role", "input[0].role is missing"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].arguments", "missing"),
        ({"max_tokens": 5}, "max_tokens", "send `max_output_tokens`"),
        ({"truncation": "left"}, "truncation", "'auto' or 'disabled'"),
        ({"truncation": "auto", "input": "hi " * 300}, "", "context is 256 tokens"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice", "'web_search' is not supported"),
        ({"tool_choice": {"name": ""}}, "tool_choice.name", "at least 1 character"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema", "requ"),
        ({"text": {"format": {"type": "sound"}}}, "text.format", ""),
        ({"reasoning": {"effort": "much"}}, "reasoning.effort", "'none'"),
    ],
)
def test_what_cannot_be_asked(
    tiny: LiveServer, change: dict[str, Any], param: str, message: str
) -> None:
    response = httpx.post(f"{tiny.url}/v1/responses", json={"input": "hi"} | change)
    assert response.status_code == 400
    error = response.json()["error"]
    assert message in error["message"]
    assert (error["param"] or "").startswith(param)


def test_what_is_without_effect(scripted: Scripted) -> None:
    client, _ = scripted("yes")
    response = client.responses.with_raw_response.create(
        model="tiny", input="hi", store=True, include=["reasoning.encrypted_content"],
        truncation="disabled", text={"format": {"type": "text"}, "verbosity": "medium"},
        user="u", service_tier="auto", prompt_cache_key="k", tool_choice="auto", top_logprobs=0,
        extra_body={"colour": "red"},
    )  # fmt: skip
    assert response.headers["x-ignored-fields"] == "colour"


def test_the_oldest_turns_make_room(tiny: LiveServer) -> None:
    """As many as must go, and never the instructions."""
    turns = [
        {"role": role, "content": f"{role} {number} " + "word " * 12}
        for number in range(9)
        for role in ("user", "assistant")
    ]
    turns.append({"role": "user", "content": "and now?"})
    body = {"input": turns, "instructions": "be brief", "max_output_tokens": 20}

    def ask(**change: Any) -> httpx.Response:
        return httpx.post(f"{tiny.url}/v1/responses", json=body | change, timeout=60)

    error = ask().json()["error"]
    assert error["code"] == "context_length_exceeded"
    found = ask(truncation="auto")
    assert found.status_code == 200, found.text
    words = found.headers["x-notice"].split()
    left_out = int(words[words.index("oldest") + 1])
    assert words[:3] == ["the", "input", "is"]
    used = found.json()["usage"]["input_tokens"]
    assert left_out % 2 == 0
    kept = ask(input=turns[left_out:])
    assert kept.json()["usage"]["input_tokens"] == used <= 256 - 20
    assert ask(input=turns[left_out - 2 :]).status_code == 400, "no more than must go"
    assert "x-notice" not in ask(input="hi", truncation="auto").headers


@pytest.mark.parametrize("thinks", [False, True])
def test_the_text_s_logprobs(client: openai.OpenAI, tokenizer: Tokenizer, thinks: bool) -> None:
    """Of the message's tokens alone: not of thoughts, nor of tags."""
    end = tokenizer.added_ids["</think>"]
    extra = {"enable_thinking": thinks, "logit_bias": {str(end): 4 if thinks else -100}}
    ask: dict[str, Any] = {
        "model": "tiny", "input": "hi", "max_output_tokens": 60, "top_logprobs": 2,
        "include": ["message.output_text.logprobs"], "extra_body": extra | {"seed": 3},
    }  # fmt: skip
    response = client.responses.create(**ask)
    check(response)
    (part,) = [item.content[0] for item in response.output if item.type == "message"]
    assert part.type == "output_text"
    assert part.text
    given = part.logprobs or []
    raw = bytes(byte for one in given for byte in one.bytes)
    assert part.text in raw.decode(errors="replace")
    assert len(raw.decode(errors="replace")) <= len(part.text) + len("</think>\n\n")
    assert all(len(one.top_logprobs) == 2 for one in given)
    events = list(client.responses.create(**ask, stream=True))
    streamed = [
        one.token
        for event in events
        if event.type == "response.output_text.delta"
        for one in event.logprobs
    ]
    assert streamed == [one.token for one in given]
    (done,) = [event for event in events if event.type == "response.output_text.done"]
    assert [one.token for one in done.logprobs] == streamed
    del ask["top_logprobs"], ask["include"]
    (plain,) = [x.content[0] for x in client.responses.create(**ask).output if x.type == "message"]
    assert plain.type == "output_text"
    assert plain.logprobs == []

"""Tool calls through OpenAI's official client."""

from __future__ import annotations

import json
from typing import Any

import pytest

from minimind.data.chat_dialects import read_list
from minimind.data.chat_encoding import ChatEncoder
from minimind.data.chat_format import read_conversation

USER: list[Any] = [{"role": "user", "content": "你好"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "of a town",
            "parameters": {"type": "object", "properties": {"town": {"type": "string"}}},
        },
    }
]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"town": "塔恩"}}\n</tool_call>'


@pytest.mark.parametrize("stream", [False, True])
def test_tool_calls(scripted, tokenizer, stream: bool) -> None:
    client, engine = scripted(f"I ask.\n{CALL}\n{CALL}", piece=2)
    ask = {"model": "tiny", "messages": USER, "tools": TOOLS}
    if stream:
        choices = [c for x in client.chat.completions.create(**ask, stream=True) for c in x.choices]
        said = "".join(choice.delta.content or "" for choice in choices)
        deltas = [call for choice in choices for call in choice.delta.tool_calls or []]
        assert [delta.index for delta in deltas] == [0, 1]
        calls, reason = deltas, choices[-1].finish_reason
    else:
        choice = client.chat.completions.create(**ask).choices[0]
        said, reason = choice.message.content, choice.finish_reason
        calls = choice.message.tool_calls or []
    assert said == "I ask."
    assert reason == "tool_calls"
    assert len({call.id for call in calls}) == 2
    for call in calls:
        assert call.function.name == "weather"
        assert json.loads(call.function.arguments) == {"town": "塔恩"}
    assert '"name": "weather"' in tokenizer.decode(engine.requests[0].prompt_ids)


@pytest.mark.parametrize("stream", [False, True])
def test_functions_in_the_older_form(scripted, tokenizer, stream: bool) -> None:
    client, engine = scripted(f"{CALL}\n{CALL}")
    ask: dict[str, Any] = {"model": "tiny", "messages": USER, "function_call": "auto"}
    ask["functions"] = [TOOLS[0]["function"]]
    if stream:
        choices = [c for x in client.chat.completions.create(**ask, stream=True) for c in x.choices]
        (call,) = [c.delta.function_call for c in choices if c.delta.function_call]
        assert not any(choice.delta.tool_calls for choice in choices)
        reason = choices[-1].finish_reason
    else:
        choice = client.chat.completions.create(**ask).choices[0]
        assert choice.message.tool_calls is None
        call, reason = choice.message.function_call, choice.finish_reason
    assert reason == "function_call"
    assert call is not None
    assert call.name == "weather"
    assert json.loads(call.arguments or "") == {"town": "塔恩"}
    called = {"role": "assistant", "content": None, "function_call": call.model_dump()}
    result = {"role": "function", "name": "weather", "content": "sunny"}
    client.chat.completions.create(**ask | {"messages": [*USER, called, result]})
    of_functions = engine.requests[-1].prompt_ids
    calls = [{"id": "c", "type": "function", "function": call.model_dump()}]
    called, result = called | {"tool_calls": calls}, result | {"role": "tool", "tool_call_id": "c"}
    del called["function_call"], ask["functions"], ask["function_call"]
    ask |= {"messages": [*USER, called, result], "tools": TOOLS, "parallel_tool_calls": False}
    client.chat.completions.create(**ask)
    assert engine.requests[-1].prompt_ids == of_functions, "the model sees one form alone"
    assert "weather" in tokenizer.decode(of_functions)


@pytest.mark.parametrize(
    "arguments", ['{"town":"塔恩","n":1.0}', ' { "town" : "\\u5854\\u6069", "n": 1.0 } ']
)
def test_a_call_in_the_history_has_the_tokens_of_training(
    scripted, tokenizer, arguments: str
) -> None:
    """However a client writes the arguments, and whatever the data to train on looks like."""
    client, engine = scripted("yes")
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    turns = [*USER, {"role": "assistant", "content": "", "tool_calls": [call]}]
    encoder = ChatEncoder(tokenizer)
    row = read_list({"conversations": turns}, "conversations", set())
    (trained,) = encoder.encode([encoder.spans(read_conversation(row))])
    client.chat.completions.create(model="tiny", messages=[*turns, *USER])
    ids = trained.ids.tolist()
    assert list(engine.requests[0].prompt_ids[: len(ids)]) == ids
    assert '"arguments": {"town": "塔恩", "n": 1.0}}' in tokenizer.decode(ids)


@pytest.mark.parametrize("parallel", [True, False])
def test_one_call_alone_where_several_are_not_wanted(scripted, parallel: bool) -> None:
    client, engine = scripted(CALL.removesuffix("</tool_call>"))
    ask = {"model": "tiny", "messages": USER, "tools": TOOLS, "parallel_tool_calls": parallel}
    choice = client.chat.completions.create(**ask).choices[0]
    assert engine.requests[0].params.stop == (() if parallel else ("</tool_call>",))
    assert choice.finish_reason == "tool_calls", "what a stop string cuts off is whole all the same"
    assert [call.function.name for call in choice.message.tool_calls or []] == ["weather"]


def test_a_tool_s_answer_goes_back(scripted, tokenizer) -> None:
    client, engine = scripted(CALL)
    ask = {"model": "tiny", "tools": TOOLS}
    message = client.chat.completions.create(messages=USER, **ask).choices[0].message
    assert message.content is None
    answered = [*USER, message, {"role": "tool", "tool_call_id": "x", "content": "sunny"}]
    client.chat.completions.create(messages=answered, **ask)
    prompt = tokenizer.decode(engine.requests[-1].prompt_ids)
    assert CALL in prompt
    assert "<tool_response>\nsunny\n</tool_response>" in prompt


def test_tools_not_to_be_called_are_not_offered(scripted, tokenizer) -> None:
    client, engine = scripted(CALL)
    ask = {"model": "tiny", "messages": USER, "tools": TOOLS, "tool_choice": "none"}
    message = client.chat.completions.create(**ask).choices[0].message
    assert message.content == CALL
    assert "weather" not in tokenizer.decode(engine.requests[0].prompt_ids)

"""Answers held to a form, through the server: an untrained model answers validly, or is cut off."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from answer_forms import FORMAT, SCHEMA, TOOLS, USER, Ask, Person, tool
from live_servers import ScriptedEngine, Serve
from openai_clients import connect

from minimind.data.tokenizer import Tokenizer


@pytest.mark.parametrize("temperature", [0, 1])
def test_the_client_parses_what_it_asked_for(
    roomy_client: openai.OpenAI, temperature: float
) -> None:
    answer = roomy_client.chat.completions.parse(
        model="tiny",
        messages=USER,
        response_format=Person,
        temperature=temperature,
        n=3,
        seed=1,
        logprobs=True,
    )
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        assert isinstance(choice.message.parsed, Person)
        assert choice.logprobs is not None
        assert choice.logprobs.content
    if temperature:
        assert len({choice.message.content for choice in answer.choices}) == 3


def test_streamed_it_is_the_same(roomy_client: openai.OpenAI) -> None:
    given: dict[str, Any] = {"model": "tiny", "messages": USER, "seed": 2}
    whole = roomy_client.chat.completions.create(**given, response_format=FORMAT)  # type: ignore[call-overload]
    with roomy_client.chat.completions.stream(**given, response_format=Person) as stream:
        last = stream.get_final_completion().choices[0]
    assert last.message.content == whole.choices[0].message.content
    assert last.message.parsed is not None


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", {"Person", "now"}),
        ({"type": "function", "function": {"name": "Person"}}, {"Person"}),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "required",
                    "tools": [{"type": "function", "function": {"name": "Person"}}],
                },
            },
            {"Person"},
        ),
    ],
    ids=["required", "named", "allowed"],
)
def test_a_call_that_must_be_made_is_made(
    roomy_client: openai.OpenAI, choice: Any, names: set[str], stream: bool
) -> None:
    found: set[str] = set()
    for seed in range(4):
        given: dict[str, Any] = {
            "model": "tiny", "messages": USER, "tools": TOOLS, "tool_choice": choice, "seed": seed,
            "parallel_tool_calls": False, "logit_bias": {"128": 8},
        }  # fmt: skip
        if stream:
            chunks = [c for x in roomy_client.chat.completions.create(**given, stream=True)
                      for c in x.choices]  # fmt: skip
            (call,) = (call for c in chunks for call in c.delta.tool_calls or [])
            reason, text = chunks[-1].finish_reason, "".join(c.delta.content or "" for c in chunks)
        else:
            one = roomy_client.chat.completions.create(**given).choices[0]
            (call,) = one.message.tool_calls or []
            reason, text = one.finish_reason, one.message.content or ""
        assert (reason, text) == ("tool_calls", "")
        found.add(call.function.name)
        if call.function.name == "Person":
            Person.model_validate_json(call.function.arguments)
        else:
            assert call.function.arguments == "{}", "it has no parameters"
    assert found <= names


@pytest.mark.parametrize("limit", [1, 3, 9])
def test_a_call_that_must_be_made_and_is_cut_off_is_no_text(
    ask_for: Ask, roomy_client: openai.OpenAI, limit: int
) -> None:
    choice = ask_for(tools=[tool()], tool_choice="required", max_tokens=limit)
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"] is None
    assert not choice["message"]["content"]
    flat = {"type": "function", "name": "now", "parameters": SCHEMA, "strict": True}
    response = roomy_client.responses.create(
        model="tiny",
        input="x",
        tools=[flat],
        tool_choice="required",
        max_output_tokens=limit,  # type: ignore[list-item]
    )
    assert response.status == "incomplete"
    assert response.output_text == ""


def test_strict_tools_hold_the_calls_that_a_model_makes(ask_for: Ask, tokenizer: Tokenizer) -> None:
    """The tag is made likely, for the model to call at all."""
    given = {
        "tools": [tool(strict=True)],
        "logit_bias": {str(tokenizer.added_ids["<tool_call>"]): 9},
    }
    called = 0
    for seed in range(6):
        message = ask_for(**given, seed=seed)["message"]
        for call in message["tool_calls"] or []:
            called += 1
            Person.model_validate_json(call["function"]["arguments"])
        assert "<tool_call>" not in (message["content"] or "")[:-300]
    assert called > 3


def test_an_answer_in_a_form_or_a_call(ask_for: Ask) -> None:
    kinds = set()
    for seed in range(12):
        message = ask_for(
            tools=[tool("T")], response_format=FORMAT, seed=seed, parallel_tool_calls=False
        )["message"]
        calls = message["tool_calls"] or []
        text = calls[0]["function"]["arguments"] if calls else message["content"]
        Person.model_validate_json(text)
        kinds.add(bool(calls))
    assert kinds == {True, False}


def test_the_form_begins_behind_the_thinking(ask_for: Ask, tokenizer: Tokenizer) -> None:
    end = tokenizer.added_ids["</think>"]
    choice = ask_for(response_format=FORMAT, enable_thinking=True, logit_bias={str(end): 3})
    Person.model_validate_json(choice["message"]["content"])
    assert choice["message"]["reasoning_content"]
    cut = ask_for(
        response_format=FORMAT, enable_thinking=True, logit_bias={str(end): -100}, max_tokens=9
    )
    assert cut["finish_reason"] == "length"
    assert cut["message"]["content"] == ""


def test_an_answer_that_is_cut_off_says_so(roomy_client: openai.OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        roomy_client.chat.completions.parse(
            model="tiny", messages=USER, response_format=Person, max_tokens=4
        )


def test_biased_tokens_are_banned_or_forced(ask_for: Ask, tokenizer: Tokenizer) -> None:
    forced = ask_for(logit_bias={"50": 100}, max_tokens=5)["message"]["content"]
    assert forced == 5 * tokenizer.decode([50])
    best = ask_for(max_tokens=1, temperature=0, logprobs=True)["logprobs"]["content"][0]
    (banned,) = [i for i in range(tokenizer.vocab_size)
                 if list(tokenizer.token_bytes([i])) == best["bytes"]][:1]  # fmt: skip
    other = ask_for(max_tokens=1, temperature=0, logit_bias={str(banned): -100})
    assert other["message"]["content"] != best["token"]
    held = ask_for(guided_choice=["yes", "no"], logit_bias={str(tokenizer.encode("no")[0]): -50})
    assert held["message"]["content"] == "yes"


@pytest.mark.parametrize("piece", [3, 100])
def test_json_may_spell_the_tags_of_calls(serve: Serve, piece: int) -> None:
    answer = '{"a": "<tool_call>{}</tool_call>"}'
    engine = ScriptedEngine(answer, piece=piece, grammars=_Compiles())
    client = connect(serve(tiny=engine))
    given: dict[str, Any] = {"model": "tiny", "messages": USER, "tools": TOOLS}
    answered = client.chat.completions.create(**given, response_format=FORMAT)  # type: ignore[call-overload]
    message = answered.choices[0].message
    assert (message.content, message.tool_calls) == (answer, None)


class _Compiles:
    def compile(self, text: str) -> None:
        """Of an engine that says what it is told."""

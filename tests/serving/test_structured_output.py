"""Answers held to a form, through the server: an untrained model answers validly, or is cut off."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any, Literal

import httpx2 as httpx
import jsonschema
import openai
import pytest
from live_servers import LiveServer, ScriptedEngine, Serve, random_engine, running_server
from pydantic import BaseModel, Field

from minimind.data.tokenizer import Tokenizer
from minimind.serving.settings import ServerSettings

USER: list[Any] = [{"role": "user", "content": "你好"}]


class Person(BaseModel):
    """Somebody in a town."""

    name: str = Field(max_length=5)
    age: int = Field(ge=0, le=99)
    likes: Literal["tea", "苹果"]


SCHEMA = Person.model_json_schema()
DEEP = '{"items": ' * 900 + "{}" + "}" * 900
WRONG = {"type": "array", "uniqueItems": True, "maxItems": 1}


def tool(name: str = "Person", parameters: Any = SCHEMA, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


TOOLS = [tool(), tool("now", None)]
FORMAT = {"type": "json_schema", "json_schema": {"name": "p", "schema": SCHEMA, "strict": True}}


@pytest.fixture(scope="module")
def server(tokenizer: Tokenizer) -> Iterator[LiveServer]:
    settings = ServerSettings(port=0, max_new_tokens=800)
    engine = random_engine(tokenizer, context=2000)
    with running_server({"tiny": engine}, tokenizer, settings) as live:
        yield live


@pytest.fixture
def client(server: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


Ask = Callable[..., Any]


@pytest.fixture
def ask(server: LiveServer) -> Ask:
    """ask(field=…): the first choice of an answer, or its error."""

    def call(path: str = "chat/completions", **body: Any) -> Any:
        start: dict[str, Any] = {"model": "tiny", "max_tokens": 300, "seed": 4}
        start |= {"messages": USER} if path.startswith("chat") else {"prompt": "x"}
        answer = httpx.post(f"{server.url}/v1/{path}", json=start | body, timeout=60).json()
        return answer.get("error") or answer["choices"][0]

    return call


@pytest.mark.parametrize("temperature", [0, 1])
def test_the_client_parses_what_it_asked_for(client: openai.OpenAI, temperature: float) -> None:
    answer = client.chat.completions.parse(
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


def test_streamed_it_is_the_same(client: openai.OpenAI) -> None:
    given: dict[str, Any] = {"model": "tiny", "messages": USER, "seed": 2}
    whole = client.chat.completions.create(**given, response_format=FORMAT)  # type: ignore[call-overload]
    with client.chat.completions.stream(**given, response_format=Person) as stream:
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
    client: openai.OpenAI, choice: Any, names: set[str], stream: bool
) -> None:
    found: set[str] = set()
    for seed in range(4):
        given: dict[str, Any] = {
            "model": "tiny", "messages": USER, "tools": TOOLS, "tool_choice": choice, "seed": seed,
            "parallel_tool_calls": False, "logit_bias": {"128": 8},
        }  # fmt: skip
        if stream:
            chunks = [c for x in client.chat.completions.create(**given, stream=True)
                      for c in x.choices]  # fmt: skip
            (call,) = (call for c in chunks for call in c.delta.tool_calls or [])
            reason, text = chunks[-1].finish_reason, "".join(c.delta.content or "" for c in chunks)
        else:
            one = client.chat.completions.create(**given).choices[0]
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
    ask: Ask, client: openai.OpenAI, limit: int
) -> None:
    choice = ask(tools=[tool()], tool_choice="required", max_tokens=limit)
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"] is None
    assert not choice["message"]["content"]
    flat = {"type": "function", "name": "now", "parameters": SCHEMA, "strict": True}
    response = client.responses.create(
        model="tiny",
        input="x",
        tools=[flat],
        tool_choice="required",
        max_output_tokens=limit,  # type: ignore[list-item]
    )
    assert response.status == "incomplete"
    assert response.output_text == ""


def test_strict_tools_hold_the_calls_that_a_model_makes(ask: Ask, tokenizer: Tokenizer) -> None:
    """The tag is made likely, for the model to call at all."""
    given = {
        "tools": [tool(strict=True)],
        "logit_bias": {str(tokenizer.added_ids["<tool_call>"]): 9},
    }
    called = 0
    for seed in range(6):
        message = ask(**given, seed=seed)["message"]
        for call in message["tool_calls"] or []:
            called += 1
            Person.model_validate_json(call["function"]["arguments"])
        assert "<tool_call>" not in (message["content"] or "")[:-300]
    assert called > 3


def test_an_answer_in_a_form_or_a_call(ask: Ask) -> None:
    kinds = set()
    for seed in range(12):
        message = ask(
            tools=[tool("T")], response_format=FORMAT, seed=seed, parallel_tool_calls=False
        )["message"]
        calls = message["tool_calls"] or []
        text = calls[0]["function"]["arguments"] if calls else message["content"]
        Person.model_validate_json(text)
        kinds.add(bool(calls))
    assert kinds == {True, False}


def test_the_form_begins_behind_the_thinking(ask: Ask, tokenizer: Tokenizer) -> None:
    end = tokenizer.added_ids["</think>"]
    choice = ask(response_format=FORMAT, enable_thinking=True, logit_bias={str(end): 3})
    Person.model_validate_json(choice["message"]["content"])
    assert choice["message"]["reasoning_content"]
    cut = ask(
        response_format=FORMAT, enable_thinking=True, logit_bias={str(end): -100}, max_tokens=9
    )
    assert cut["finish_reason"] == "length"
    assert cut["message"]["content"] == ""


def test_an_answer_that_is_cut_off_says_so(client: openai.OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(
            model="tiny", messages=USER, response_format=Person, max_tokens=4
        )


@pytest.mark.parametrize(
    ("fields", "is_right"),
    [
        ({"response_format": {"type": "text"}}, lambda text: text),
        (
            {"response_format": {"type": "json_object", "schema": SCHEMA}},
            Person.model_validate_json,
        ),
        ({"guided_json": json.dumps(SCHEMA)}, Person.model_validate_json),
        ({"structured_outputs": {"json": SCHEMA}}, Person.model_validate_json),
        ({"json_schema": SCHEMA}, Person.model_validate_json),
        ({"guided_choice": ["yes", "不"]}, lambda text: text in ("yes", "不")),
        ({"structured_outputs": {"choice": ["a"]}}, lambda text: text == "a"),
        ({"structured_outputs": {"regex": r"\d{3}-[xy]"}}, lambda text: text[3] == "-"),
        ({"guided_grammar": 'start: "a" B\nB: /[bc]/'}, lambda text: text in ("ab", "ac")),
        ({"grammar": 'root ::= "a" x\nx ::= "b" | "c"'}, lambda text: text in ("ab", "ac")),
        ({"grammar": "", "max_tokens": 2}, lambda text: True),
        (
            {"guided_json": {"type": "string", "format": "path", "maxLength": 4}},
            lambda text: isinstance(json.loads(text), str),
        ),
        (
            {"guided_json": {"type": "string", "format": "date", "enum": ["path", "2026-11-29"]}},
            lambda text: json.loads(text) == "2026-11-29",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_each_field_is_honoured(
    ask: Ask, path: str, fields: dict[str, Any], is_right: Callable[[str], Any]
) -> None:
    choice = ask(path, **fields)
    assert is_right(choice["text"] if path == "completions" else choice["message"]["content"])


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        (
            {"response_format": {"type": "xml"}},
            "response_format",
            "response_format type 'xml' is not supported: it must be one of 'text', 'json_object'",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": True}}},
            "response_format.json_schema.schema",
            "^response_format.json_schema.schema: Input should be a valid dictionary$",
        ),
        (
            {"tool_choice": {"type": "custom", "custom": {"name": "x"}}, "tools": TOOLS},
            "tool_choice",
            "^tool_choice type 'custom' is not supported: it must be one of 'function', 'allowed_",
        ),
        (
            {"tool_choice": {"type": "function", "name": "now"}, "tools": TOOLS},
            "tool_choice.function",
            "^tool_choice.function: Field required$",
        ),
        (
            {"structured_outputs": {"structural_tag": "{}"}},
            "structured_outputs.structural_tag",
            "is not supported: send `tools` or",
        ),
        (
            {"guided_json": {"type": "string", "format": "uri-template"}},
            "guided_json",
            "Unknown format: uri-template$",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": WRONG}}},
            "response_format",
            r'^response_format cannot be kept to: .*uniqueItems.* \("strict": false leaves them ',
        ),
        ({"guided_json": "{"}, "guided_json", "not JSON"),
        ({"guided_regex": "(a"}, "guided_regex", "unclosed group"),
        ({"guided_regex": "a", "grammar": "b"}, "grammar", "guided_regex and grammar exclude"),
        (
            {"structured_outputs": {"regex": "a", "choice": ["b"]}},
            "structured_outputs.choice",
            "exclude",
        ),
        (
            {"tools": [tool(parameters={"properties": {"a": WRONG}}, strict=True)]},
            "tools",
            "'Person'.*uniqueItems",
        ),
        (
            {"tools": [tool(parameters=WRONG)], "tool_choice": "required"},
            "tools",
            '\'Person\'.*their type is "array"; it must be "object"',
        ),
        ({"guided_json": DEEP}, "guided_json", "nested too deep"),
        ({"guided_json": '{"const": NaN}'}, "guided_json", "NaN is no number"),
        ({"guided_json": '{"const": "\\ud800"}'}, "guided_json", "half a character"),
        ({"tool_choice": "required"}, "tools", "there are no tools"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice",
            "'x'; the tools are Person, now",
        ),
        ({"logit_bias": {"x": 1}}, "logit_bias.x", "pattern"),
        ({"logit_bias": [["x", 1]]}, "logit_bias", "each must be .token id, bias"),
        ({"logit_bias": [[5, 101]]}, "logit_bias.5", "less than or equal to 100"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5", "less than or equal to 100"),
        ({"logit_bias": {"99999": 1}}, None, "the token 99999; the model's are 0 to"),
    ],
)
def test_what_cannot_be_kept_to_is_refused_in_its_own_words(
    ask: Ask, fields: dict[str, Any], param: str | None, words: str
) -> None:
    error = ask(**fields)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    with pytest.raises(ValueError, match=words):
        raise ValueError(error["message"])


def test_a_schema_that_is_not_strict_is_kept_as_far_as_it_can_be(ask: Ask) -> None:
    schema = {**WRONG, "items": {"type": "boolean"}}
    form = {"type": "json_schema", "json_schema": {"schema": schema, "strict": False}}
    jsonschema.validate(json.loads(ask(response_format=form)["message"]["content"]), schema)
    call = ask(tools=[tool(parameters={**SCHEMA, "not": {}})], tool_choice="required")
    Person.model_validate_json(call["message"]["tool_calls"][0]["function"]["arguments"])


def test_biased_tokens_are_banned_or_forced(ask: Ask, tokenizer: Tokenizer) -> None:
    forced = ask(logit_bias={"50": 100}, max_tokens=5)["message"]["content"]
    assert forced == 5 * tokenizer.decode([50])
    best = ask(max_tokens=1, temperature=0, logprobs=True)["logprobs"]["content"][0]
    (banned,) = [i for i in range(tokenizer.vocab_size)
                 if list(tokenizer.token_bytes([i])) == best["bytes"]][:1]  # fmt: skip
    other = ask(max_tokens=1, temperature=0, logit_bias={str(banned): -100})
    assert other["message"]["content"] != best["token"]
    held = ask(guided_choice=["yes", "no"], logit_bias={str(tokenizer.encode("no")[0]): -50})
    assert held["message"]["content"] == "yes"


@pytest.mark.parametrize("piece", [3, 100])
def test_json_may_spell_the_tags_of_calls(serve: Serve, piece: int) -> None:
    answer = '{"a": "<tool_call>{}</tool_call>"}'
    engine = ScriptedEngine(answer, piece=piece, grammars=_Compiles())
    client = openai.OpenAI(base_url=f"{serve(tiny=engine).url}/v1", api_key="none")
    given: dict[str, Any] = {"model": "tiny", "messages": USER, "tools": TOOLS}
    answered = client.chat.completions.create(**given, response_format=FORMAT)  # type: ignore[call-overload]
    message = answered.choices[0].message
    assert (message.content, message.tool_calls) == (answer, None)


class _Compiles:
    def compile(self, text: str) -> None:
        """Of an engine that says what it is told."""


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_langchain(server: LiveServer, tokenizer: Tokenizer, method: Any) -> None:
    chat = pytest.importorskip("langchain_openai").ChatOpenAI(
        base_url=f"{server.url}/v1", api_key="none", model="tiny", seed=1, max_retries=0,
        # JSON mode holds no schema: an object ends as soon as it may.
        **({"logit_bias": _ends_soon(tokenizer)} if method == "json_mode" else {}),
    )  # fmt: skip
    if method == "json_mode":
        found = chat.with_structured_output(None, method=method).invoke("as JSON")
        assert isinstance(found, dict)
    else:
        assert isinstance(chat.with_structured_output(Person, method=method).invoke("x"), Person)


@pytest.mark.parametrize("kind", ["plain", "NativeOutput", "ToolOutput"])
def test_pydantic_ai(server: LiveServer, kind: str) -> None:
    ai = pytest.importorskip("pydantic_ai")
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=f"{server.url}/v1", api_key="none")
    output = Person if kind == "plain" else getattr(ai, kind)(Person)
    agent = ai.Agent(OpenAIChatModel("tiny", provider=provider), output_type=output, retries=0)
    found = asyncio.run(agent.run("x")).output
    assert isinstance(found, Person)


@pytest.mark.parametrize("mode", ["TOOLS", "TOOLS_STRICT", "JSON_SCHEMA"])
def test_instructor(client: openai.OpenAI, mode: str) -> None:
    """Not among what `make` installs: its releases want an older openai."""
    instructor = pytest.importorskip("instructor")
    asked = instructor.from_openai(client, mode=getattr(instructor.Mode, mode))
    found = asked.chat.completions.create(
        model="tiny", messages=USER, response_model=Person, max_retries=0
    )
    assert isinstance(found, Person)


def _ends_soon(tokenizer: Tokenizer) -> dict[str, int]:
    """Quotes, colons and braces are likely, what opens more is not."""
    likely = {'"': 9, "}": 9, '": ': 9, "{": -9, "[": -9, "]": 9, "1": 5}
    return {str(i): bias for text, bias in likely.items() for i in tokenizer.encode(text)}

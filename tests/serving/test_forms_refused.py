"""Forms that cannot be kept to, and fields that say how far one is."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from answer_forms import SCHEMA, TOOLS, Ask, Person, tool

DEEP = '{"items": ' * 900 + "{}" + "}" * 900
WRONG = {"type": "array", "uniqueItems": True, "maxItems": 1}


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
    ask_for: Ask, path: str, fields: dict[str, Any], is_right: Callable[[str], Any]
) -> None:
    choice = ask_for(path, **fields)
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
    ask_for: Ask, fields: dict[str, Any], param: str | None, words: str
) -> None:
    error = ask_for(**fields)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    with pytest.raises(ValueError, match=words):
        raise ValueError(error["message"])


def test_a_schema_that_is_not_strict_is_kept_as_far_as_it_can_be(ask_for: Ask) -> None:
    schema = {**WRONG, "items": {"type": "boolean"}}
    form = {"type": "json_schema", "json_schema": {"schema": schema, "strict": False}}
    jsonschema.validate(json.loads(ask_for(response_format=form)["message"]["content"]), schema)
    call = ask_for(tools=[tool(parameters={**SCHEMA, "not": {}})], tool_choice="required")
    Person.model_validate_json(call["message"]["tool_calls"][0]["function"]["arguments"])

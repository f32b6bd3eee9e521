"""What of JSON schema is kept to, what is refused, and what compiling it may cost."""

from __future__ import annotations

from typing import Any

import pytest
from grammars import STEP, V, compiled, takes
from small_engines import tokenizer

from minimind.errors import ConfigError
from minimind.inference.grammar import MAX_CHARACTERS, GrammarCompiler
from minimind.inference.grammar_texts import (
    AnswerForm,
    ToolForm,
    choice_rules,
    grammar_rules,
    json_rules,
    regex_rules,
)


def test_objects_have_the_properties_that_they_list() -> None:
    inner = {"type": "object", "properties": {"b": {}}}
    rules = json_rules(
        {
            "type": "object",
            "properties": {"properties": inner, "const": {"const": inner}},
            "$defs": {"open": inner | {"additionalProperties": True}},
        }
    )["json_schema"]
    assert rules["additionalProperties"] is False
    assert rules["properties"]["properties"]["additionalProperties"] is False
    assert rules["properties"]["const"] == {"const": inner}
    assert rules["$defs"]["open"]["additionalProperties"] is True
    assert "additionalProperties" not in json_rules({"allOf": [inner, inner]})["json_schema"]
    needs_more = {"properties": {"a": {"const": 1}}, "required": ["a", "format"]}
    assert takes(json_rules(needs_more), '{"a": 1, "format": 2}'), "one that it does not describe"


def test_formats_that_json_schema_does_not_define_are_notes() -> None:
    noted = {
        "properties": {"format": {"type": "integer", "format": "int32"}, "x": {"format": "path"}},
        "required": ["format", "x"],
        "default": {"format": "path"},
    }
    rules = json_rules(noted)
    assert takes(rules, '{"format": 1, "x": "any"}')
    assert not takes(rules, '{"format": "a", "x": "any"}')
    assert rules["json_schema"]["default"] == noted["default"], "a value is no schema"
    dated = json_rules({"enum": ["path", "2026-11-29"], "type": "string", "format": "date"})
    assert takes(dated, '"2026-11-29"')
    assert not takes(dated, '"path"')


@pytest.mark.parametrize(
    ("parameters", "taken", "refused"),
    [
        (None, "{}", '{"a": 1}'),
        ({}, '{"a": 1}', '"a"'),
        ({"properties": {}}, "{}", "1"),
        ({"anyOf": [{"required": ["a"]}, {"type": "string"}]}, '{"a": 1}', '"a"'),
        ({"type": ["object", "null"]}, "{}", "null"),
    ],
)
def test_arguments_are_always_an_object(
    parameters: dict[str, Any] | None, taken: str, refused: str
) -> None:
    rules = ToolForm(name="f", parameters=parameters, is_strict=False).write()
    assert takes(rules, taken)
    assert not takes(rules, refused)
    with pytest.raises(ConfigError, match='their type is "string"; it must be "object"'):
        ToolForm(name="f", parameters={"type": "string"}, is_strict=False).write()


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (json_rules({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (json_rules({"not": {}}), '"not"'),
        (json_rules({"type": "strnig"}), "strnig"),
        (json_rules({"$ref": "#/$defs/x"}), "does not exist"),
        (json_rules({"$ref": "#"}), "no text fits"),
        (json_rules({"type": "string", "pattern": "(?=a)"}), "look-around"),
        (json_rules({"oneOf": [{"type": "object"}, {"type": "object"}]}), "oneOf"),
        (json_rules({"enum": ["x" * 100] * (MAX_CHARACTERS // 100)}), "characters"),
        (regex_rules("(a"), "unclosed group"),
        (grammar_rules('start: "a" b'), 'unknown name: "b"'),
    ],
)
def test_a_form_that_cannot_be_kept_to_is_refused(rules: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        compiled(AnswerForm(content=rules))


def test_keywords_that_are_not_known_are_left_out_where_that_is_asked_for() -> None:
    schema = {"type": "array", "uniqueItems": True, "items": {"const": 1}, "maxItems": 2}
    grammar = compiled(AnswerForm(content=json_rules(schema, is_strict=False)))
    assert grammar.matcher().consume_tokens(tokenizer().encode("[1, 1]"))


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"enum": [f"value {i}" for i in range(9000)]}, "characters"),
        ({"enum": [f"{i}" for i in range(5000)]}, None),
        ({"anyOf": [{"properties": {f"p{i}": {}}} for i in range(400)]}, None),
        ({"type": "string", "pattern": "^((a{1,1000}){1,1000}){1,1000}$"}, None),
        ({"type": "string", "pattern": "^(a|b)*a(a|b){300}$"}, None),
        ({"type": "array", "minItems": 10**9}, None),
        ({"allOf": [{"anyOf": [{"properties": {f"{i}{j}": STEP}, "required": [f"{i}{j}"]}
                               for j in range(4)]} for i in range(12)]}, "too large"),
    ],
)  # fmt: skip
def test_what_a_schema_can_cost_is_bounded(schema: dict[str, Any], words: str | None) -> None:
    """Taken or refused, but with an end."""
    form = AnswerForm(content=json_rules(schema))
    if words is None:
        assert any(compiled(form).matcher().compute_bitmask())
    else:
        with pytest.raises(ConfigError, match=words):
            compiled(form)


def test_what_takes_too_long_is_ended() -> None:
    """A product of automata that llguidance's own limits do not see."""
    parts = [{"type": "string", "pattern": f"^(a|b)*a(a|b){{{i + 20}}}$"} for i in range(32)]
    compiler = GrammarCompiler(tokenizer(), V, limit_s=0.5)
    for _ in range(2):
        fine = compiler.compile(AnswerForm(content=choice_rules(["a"])).text(tokenizer()))
        assert fine.matcher().consume_token(100)
        with pytest.raises(ConfigError, match=r"it takes more than 0\.5 s"):
            compiler.compile(AnswerForm(content=json_rules({"allOf": parts})).text(tokenizer()))
        with pytest.raises(ConfigError, match="uniqueItems"):
            compiler.compile(
                AnswerForm(content=json_rules({"uniqueItems": True})).text(tokenizer())
            )


def test_a_grammar_is_compiled_once() -> None:
    compiler = GrammarCompiler(tokenizer(), V)
    text = AnswerForm(content=choice_rules(["a"])).text(tokenizer())
    first = compiler.compile(text)
    assert compiler.compile(text) is first
    for number in range(64):
        compiler.compile(AnswerForm(content=choice_rules([str(number)])).text(tokenizer()))
    assert compiler.compile(text) is not first, "those used last are kept"

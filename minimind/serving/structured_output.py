"""Defines the request fields of OpenAI, vLLM and llama.cpp that constrain an answer: JSON, other
grammars, biased tokens. Tool calls are in tool_choice.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints, WithJsonSchema
from pydantic_core import PydanticCustomError

from minimind.data.tokenizer import Tokenizer
from minimind.errors import ConfigError
from minimind.inference.grammar import Grammar, GrammarCompiler
from minimind.inference.grammar_texts import (
    AnswerForm,
    Rules,
    choice_rules,
    grammar_rules,
    json_rules,
    regex_rules,
)
from minimind.serving.api_errors import ApiError
from minimind.serving.field_standing import ByType, NoEffect, Refused
from minimind.serving.json_body import read_json
from minimind.serving.message_schemas import NonEmpty, RequestPart

JsonSchema = dict[str, Any]
Choices = Annotated[list[NonEmpty], Field(min_length=1)]


def _read_pairs(given: Any) -> Any:
    """Converts llama.cpp's list of [id, bias] to OpenAI's object; gives any other value
    unchanged."""
    if not isinstance(given, list) or not all(isinstance(one, list) for one in given):
        return given
    found: dict[str, Any] = {}
    for pair in given:
        if len(pair) != 2 or not isinstance(pair[0], int) or isinstance(pair[0], bool):
            raise PydanticCustomError("value_error", "each must be [token id, bias]")
        found[str(pair[0])] = -_LIMIT if pair[1] is False else pair[1]
    return found


_ID, _LIMIT = r"^[0-9]{1,9}$", 100
Bias = Annotated[
    dict[
        Annotated[str, StringConstraints(pattern=_ID)],
        Annotated[float, Field(ge=-_LIMIT, le=_LIMIT)],
    ],
    BeforeValidator(_read_pairs),
    # pydantic's own description would allow other keys.
    WithJsonSchema(
        {
            "type": "object",
            "patternProperties": {_ID: {"type": "number", "minimum": -_LIMIT, "maximum": _LIMIT}},
            "additionalProperties": False,
        }
    ),
]
_LOSABLE = ("Unimplemented keys", "oneOf constraints", "Unknown format")
"""The beginnings of llguidance's messages about keywords that may be left out."""
_ANY_OBJECT: JsonSchema = {"type": "object"}


class TextFormat(RequestPart):
    type: Literal["text"]

    @property
    def form(self) -> None:
        return None


class ObjectFormat(RequestPart):
    type: Literal["json_object"]
    schema_: JsonSchema | None = Field(None, alias="schema")
    """llama.cpp's field."""

    @property
    def form(self) -> Callable[[], Rules]:
        return partial(json_rules, self.schema_ or _ANY_OBJECT)


class SchemaNames(RequestPart):
    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    """False leaves out unsupported keywords of the schema; otherwise they are refused."""


class NamedSchema(SchemaNames):
    schema_: JsonSchema | None = Field(None, alias="schema")


class SchemaFormat(RequestPart):
    type: Literal["json_schema"]
    json_schema: NamedSchema

    @property
    def form(self) -> Callable[[], Rules]:
        is_strict = self.json_schema.strict is not False
        return partial(json_rules, self.json_schema.schema_ or _ANY_OBJECT, is_strict=is_strict)


class FlatSchemaFormat(SchemaNames):
    """Defines the json_schema format in the flat form of /v1/responses."""

    type: Literal["json_schema"]
    schema_: JsonSchema = Field(alias="schema")


ResponseFormat = Annotated[TextFormat | ObjectFormat | SchemaFormat, ByType()]


class StructuredOutputs(RequestPart):
    """Holds vLLM's forms of an answer, of which one may be given."""

    json_: JsonSchema | str | None = Field(None, alias="json")
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: Annotated[Any, Refused("send `tools` or `response_format`")] = None
    whitespace_pattern: Annotated[Any, Refused("JSON is on one line")] = None
    disable_any_whitespace: Annotated[Any, NoEffect("JSON is on one line")] = None
    disable_additional_properties: Annotated[Any, NoEffect("the schema decides it")] = None
    disable_fallback: Annotated[Any, NoEffect("there is one backend")] = None


class StructuredFields(RequestPart):
    """Holds the fields that constrain the answer, for all requests that continue a prompt. At most
    one of them may be given."""

    response_format: ResponseFormat | None = None
    """JSON on one line: any object, or one that a schema describes."""
    structured_outputs: StructuredOutputs | None = None
    """vLLM's field: a JSON schema, a regular expression, texts to choose from, or a grammar in Lark
    or GBNF."""
    guided_json: JsonSchema | str | None = None
    """An older name for `structured_outputs.json`; the next fields are older names too."""
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None
    guided_whitespace_pattern: Annotated[Any, Refused("JSON is on one line")] = None
    guided_decoding_backend: Annotated[Any, NoEffect("there is one backend")] = None
    json_schema: JsonSchema | None = None
    """llama.cpp's field."""
    grammar: str | None = None
    """llama.cpp's field: a grammar in GBNF or Lark; "" is none."""
    logit_bias: Bias | None = None
    """By token id, a number from −100 to 100 that is added to its logit: −100 bans it, 100 forces
    it. Or llama.cpp's list of [id, bias], where false bans."""

    @property
    def biases(self) -> tuple[tuple[int, float], ...]:
        return tuple((int(id), bias) for id, bias in (self.logit_bias or {}).items() if bias)

    def answer_grammar(
        self, compiler: GrammarCompiler, tokenizer: Tokenizer, after_thinking: bool
    ) -> Grammar | None:
        """Compiles the grammar of the answer; None where the answer may be any text. Raises
        ApiError, which names the field that cannot be enforced."""
        if self.content is None:
            return None
        rules = self.content[1]
        return self.compile_form(compiler, tokenizer, content=rules, after_thinking=after_thinking)

    @cached_property
    def content(self) -> tuple[str, Rules] | None:
        """Gives the field that constrains the text, by name, and its rules; None for free text.
        Raises ApiError."""
        given = {name: form for name, form in self._forms().items() if form is not None}
        if len(given) > 1:
            one, other, *_ = given
            raise ApiError(400, f"{one} and {other} exclude each other: send one", param=other)
        for name, write in given.items():
            try:
                return name, write()
            except ConfigError as error:
                raise _cannot_hold(name, error) from None
        return None

    def compile_form(self, compiler: GrammarCompiler, tokenizer: Tokenizer, **form: Any) -> Grammar:
        """Compiles an AnswerForm made of the fields `form`. Raises ApiError."""
        whole = AnswerForm(**form)
        try:
            return compiler.compile(whole.text(tokenizer))
        except ConfigError as error:
            parts: list[tuple[str, str, Callable[[], Rules]]] = [
                ("tools", f"the parameters of {tool.name!r} among tools", tool.write)
                for tool in whole.tools
            ]
            if whole.content is not None and self.content is not None:
                name, rules = self.content
                parts.insert(0, (name, name, lambda: rules))
            for param, name, write in parts:
                try:
                    compiler.compile(AnswerForm(content=write()).text(tokenizer))
                except ConfigError as cause:
                    raise _cannot_hold(name, cause, param) from None
            raise _cannot_hold("the form of the answer", error) from None

    def _forms(self) -> dict[str, Callable[[], Rules] | None]:
        """Gives, for each field that can constrain the text, the function that writes its rules;
        None where it is not given."""
        outputs = self.structured_outputs or StructuredOutputs.model_construct()
        any_object = _ANY_OBJECT if outputs.json_object else None
        return {
            "response_format": self.response_format and self.response_format.form,
            "structured_outputs.json": _form(_read_schema, outputs.json_),
            "structured_outputs.regex": _form(regex_rules, outputs.regex),
            "structured_outputs.choice": _form(choice_rules, outputs.choice),
            "structured_outputs.grammar": _form(grammar_rules, outputs.grammar),
            "structured_outputs.json_object": _form(json_rules, any_object),
            "guided_json": _form(_read_schema, self.guided_json),
            "guided_regex": _form(regex_rules, self.guided_regex),
            "guided_choice": _form(choice_rules, self.guided_choice),
            "guided_grammar": _form(grammar_rules, self.guided_grammar),
            "json_schema": _form(json_rules, self.json_schema),
            "grammar": _form(grammar_rules, self.grammar or None),
        }


def _form(write: Callable[[Any], Rules], given: Any) -> Callable[[], Rules] | None:
    return None if given is None else partial(write, given)


def _cannot_hold(name: str, error: ConfigError, param: str | None = None) -> ApiError:
    param = (param or name).split(".")[0]
    words = f"{name} cannot be kept to: {error}"
    if param in ("response_format", "tools") and str(error).startswith(_LOSABLE):
        words += ' ("strict": false leaves them out)'
    return ApiError(400, words, param=param)


def _read_schema(given: JsonSchema | str) -> Rules:
    """Writes the rules of a schema, which some clients send as text."""
    try:
        schema = read_json(given.encode()) if isinstance(given, str) else given
    except ValueError as error:
        raise ConfigError(f"it is not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise ConfigError("it is not a JSON object")
    return json_rules(schema)

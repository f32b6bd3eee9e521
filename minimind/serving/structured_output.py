"""What a request says of its answer's form, by the fields of OpenAI's, vLLM's and llama.cpp's
servers: JSON, other grammars, calls of tools, biased tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, WithJsonSchema

from minimind.data.tokenizer import Tokenizer
from minimind.errors import ConfigError
from minimind.inference.grammar import Grammar, GrammarCompiler
from minimind.inference.grammar_texts import (
    AnswerForm,
    Rules,
    ToolForm,
    choice_rules,
    grammar_rules,
    json_rules,
    regex_rules,
)
from minimind.serving.api_errors import ApiError

JsonSchema = dict[str, Any]
Choices = Annotated[list[Annotated[str, StringConstraints(min_length=1)]], Field(min_length=1)]
_ID, _LIMIT = r"^[0-9]{1,9}$", 100
Bias = Annotated[
    dict[
        Annotated[str, StringConstraints(pattern=_ID)],
        Annotated[float, Field(ge=-_LIMIT, le=_LIMIT)],
    ],
    # pydantic's own description allows other keys.
    WithJsonSchema(
        {
            "type": "object",
            "patternProperties": {_ID: {"type": "number", "minimum": -_LIMIT, "maximum": _LIMIT}},
            "additionalProperties": False,
        }
    ),
]
_ANY_OBJECT: JsonSchema = {"type": "object"}


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


class TextFormat(_Part):
    type: Literal["text"]


class ObjectFormat(_Part):
    type: Literal["json_object"]
    schema_: JsonSchema | None = Field(None, alias="schema")
    """llama.cpp's."""


class NamedSchema(_Part):
    name: str | None = None
    description: str | None = None
    schema_: JsonSchema | None = Field(None, alias="schema")
    strict: bool | None = None
    """False: keywords that cannot be kept are left out. Else they are refused."""


class SchemaFormat(_Part):
    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")]


class StructuredOutputs(_Part):
    """vLLM's; one of them."""

    json_: JsonSchema | str | None = Field(None, alias="json")
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    json_object: bool | None = None


class FunctionName(_Part):
    name: Annotated[str, StringConstraints(min_length=1)]


class NamedTool(_Part):
    type: Literal["function"]
    function: FunctionName


class ToolSubset(_Part):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1)]


class AllowedTools(_Part):
    type: Literal["allowed_tools"]
    allowed_tools: ToolSubset


ToolChoice = Literal["auto", "none", "required"] | NamedTool | AllowedTools


class StructuredFields(_Part):
    """Of all requests that continue a prompt. One field at most may give the text a form."""

    response_format: ResponseFormat | None = None
    """JSON: any object, or what a schema describes, on one line."""
    structured_outputs: StructuredOutputs | None = None
    """vLLM's: a JSON schema, a regular expression, texts to choose from, or a grammar in Lark or
    GBNF."""
    guided_json: JsonSchema | str | None = None
    """The same by an older name, as the next ones are."""
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None
    json_schema: JsonSchema | None = None
    """llama.cpp's."""
    grammar: str | None = None
    """llama.cpp's, in GBNF, or Lark; empty: none."""
    logit_bias: Bias | None = None
    """From −100 to 100 by a token's id, added to its logit: −100 bans it, 100 forces it."""

    @property
    def biases(self) -> tuple[tuple[int, float], ...]:
        return tuple((int(id), bias) for id, bias in (self.logit_bias or {}).items() if bias)

    def answer_grammar(
        self, compiler: GrammarCompiler, tokenizer: Tokenizer, after_thinking: bool
    ) -> Grammar | None:
        """None where the answer may be anything. Raises ApiError, which names the field that cannot
        be kept to."""
        if self._content is None:
            return None
        rules = self._content[1]
        return self._compile(compiler, tokenizer, content=rules, after_thinking=after_thinking)

    @cached_property
    def _content(self) -> tuple[str, Rules] | None:
        """The field that gives the text a form, and that form; None for free text. Raises
        ApiError."""
        found = list(self._forms())
        if len(found) > 1:
            (one, _), (other, _), *_ = found
            raise ApiError(400, f"{one} and {other} exclude each other: send one", param=other)
        return found[0] if found else None

    def _compile(self, compiler: GrammarCompiler, tokenizer: Tokenizer, **form: Any) -> Grammar:
        """`form` is of AnswerForm."""
        whole = AnswerForm(**form)
        try:
            return compiler.compile(whole.text(tokenizer))
        except ConfigError as error:
            parts = [(f"the parameters of the tool {t.name!r}", t.rules) for t in whole.tools]
            for name, rules in [*filter(None, [self._content]), *parts]:
                try:
                    compiler.compile(AnswerForm(content=rules).text(tokenizer))
                except ConfigError as cause:
                    raise _cannot_hold(name, cause) from None
            raise _cannot_hold("the whole", error) from None

    def _forms(self) -> Iterator[tuple[str, Rules]]:
        match self.response_format:
            case ObjectFormat(schema_=schema):
                yield "response_format", json_rules(schema or _ANY_OBJECT)
            case SchemaFormat(json_schema=named):
                schema, is_strict = named.schema_ or _ANY_OBJECT, named.strict is not False
                yield "response_format", json_rules(schema, is_strict=is_strict)
        given: dict[str, tuple[Any, Any]] = {
            "guided_json": (self.guided_json, _read_schema),
            "guided_regex": (self.guided_regex, regex_rules),
            "guided_choice": (self.guided_choice, choice_rules),
            "guided_grammar": (self.guided_grammar, grammar_rules),
            "json_schema": (self.json_schema, json_rules),
            "grammar": (self.grammar or None, grammar_rules),
        }
        if outputs := self.structured_outputs:
            given |= {
                "structured_outputs.json": (outputs.json_, _read_schema),
                "structured_outputs.regex": (outputs.regex, regex_rules),
                "structured_outputs.choice": (outputs.choice, choice_rules),
                "structured_outputs.grammar": (outputs.grammar, grammar_rules),
                "structured_outputs.json_object": (
                    _ANY_OBJECT if outputs.json_object else None,
                    json_rules,
                ),
            }
        for name, (value, write) in given.items():
            if value is not None:
                try:
                    yield name, write(value)
                except ConfigError as error:
                    raise _cannot_hold(name, error) from None


class ChatFormFields(StructuredFields):
    """Of the chat API: which tools are called, too."""

    tools: Sequence[Any] | None = None
    tool_choice: ToolChoice | None = None
    """auto lets the model choose, none offers no tool, required has it call at least one, a named
    function that one; allowed_tools keeps it to some."""
    parallel_tool_calls: bool | None = None
    """False: one call at most."""

    def answer_grammar(
        self, compiler: GrammarCompiler, tokenizer: Tokenizer, after_thinking: bool
    ) -> Grammar | None:
        if not self.holds_calls:
            return super().answer_grammar(compiler, tokenizer, after_thinking)
        tools, must_call = self._chosen_tools
        return self._compile(
            compiler,
            tokenizer,
            content=self._content[1] if self._content and not must_call else None,
            tools=[
                ToolForm(
                    name=tool.function.name,
                    parameters=tool.function.parameters,
                    is_strict=bool(tool.function.strict),
                )
                for tool in tools
            ],
            must_call=must_call,
            one_call=self.parallel_tool_calls is False or isinstance(self.tool_choice, NamedTool),
            after_thinking=after_thinking,
        )

    @property
    def holds_calls(self) -> bool:
        """Whether a grammar says what calls look like; else the model writes them as it likes.
        Raises ApiError."""
        if self.tool_choice == "none":
            return False
        tools, must_call = self._chosen_tools
        is_held = must_call or isinstance(self.tool_choice, AllowedTools) or self.has_form
        return is_held or any(tool.function.strict for tool in tools) if tools else False

    @property
    def has_form(self) -> bool:
        """Whether the text must have one, beside which calls are an alternative."""
        return self._content is not None

    @cached_property
    def _chosen_tools(self) -> tuple[Sequence[Any], bool]:
        """Those that may be called, and whether one must be. Raises ApiError."""
        offered = {tool.function.name: tool for tool in self.tools or ()}
        match self.tool_choice:
            case NamedTool() as choice:
                named, must_call = [choice], True
            case AllowedTools(allowed_tools=allowed):
                named, must_call = allowed.tools, allowed.mode == "required"
            case choice:
                named, must_call = None, choice == "required"
        if not offered and (named or must_call):
            raise ApiError(
                400, "tool_choice asks for a call, but there are no tools", param="tools"
            )
        if named is None:
            return list(offered.values()), must_call
        names = [one.function.name for one in named]
        for name in names:
            if name not in offered:
                raise ApiError(
                    400,
                    f"tool_choice names {name!r}; the tools are {', '.join(offered)}",
                    param="tool_choice",
                )
        return [offered[name] for name in names], must_call


def _cannot_hold(name: str, error: ConfigError) -> ApiError:
    return ApiError(400, f"{name} cannot be kept to: {error}", param=name.split(".")[0])


def _read_schema(given: JsonSchema | str) -> Rules:
    """Some clients send the schema's text."""
    try:
        schema = json.loads(given) if isinstance(given, str) else given
    except ValueError as error:
        raise ConfigError(f"it is not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise ConfigError("it is not a JSON object")
    return json_rules(schema)

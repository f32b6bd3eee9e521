"""Writes the form of an answer as a grammar for llguidance: JSON by a schema, a regular expression,
a choice, a user's grammar, or tool calls, each after the thinking block if there is one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minimind.config.tags import CALL, END_CALL, END_THINK
from minimind.data.tokenizer import Tokenizer
from minimind.errors import ConfigError

Rules = dict[str, Any]
"""One grammar in the form that llguidance takes in its list. Other grammars may refer to its
"name"."""

_AS_WRITTEN = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""Makes JSON be written on one line, as the chat template writes calls. The model was trained on
that, and a small model that may write white space can go on writing it for ever."""
_SCHEMA_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_SCHEMA_LISTS = ("anyOf", "oneOf", "prefixItems")
_SCHEMAS = ("items", "additionalProperties")
_NO_ARGUMENTS: Mapping[str, Any] = {"properties": {}}
_VALUES = ("const", "default", "enum", "examples")
"""Keywords whose values are data, not schemas."""
_FORMATS = frozenset(
    (
        "date", "date-time", "duration", "email", "hostname", "idn-email", "idn-hostname", "ipv4",
        "ipv6", "iri", "iri-reference", "json-pointer", "regex", "relative-json-pointer", "time",
        "uri", "uri-reference", "uri-template", "uuid",
    )
)  # fmt: skip
"""The formats that JSON Schema defines; llguidance refuses any that it does not know."""
_COMPOSES = ("anyOf", "oneOf", "$ref", "patternProperties", "unevaluatedProperties")
"""Keywords that may give an object properties beyond those in its own `properties`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolForm:
    """Describes a tool that an answer may call."""

    name: str
    parameters: Mapping[str, Any] | None
    """The JSON schema of the arguments; None means no arguments, as in OpenAI's API."""
    is_strict: bool
    """True where every keyword of the schema must be enforced; otherwise unsupported keywords are
    left out."""

    def write(self) -> Rules:
        """Writes the rules of the call's arguments. Raises ConfigError where the parameters do not
        describe an object."""
        schema = _NO_ARGUMENTS if self.parameters is None else self.parameters
        kind = schema.get("type", "object")
        if kind != "object" and not (isinstance(kind, list) and "object" in kind):
            raise ConfigError(f'their type is {json.dumps(kind)}; it must be "object"')
        return json_rules({**schema, "type": "object"}, is_strict=self.is_strict)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerForm:
    """Describes the form that an answer must have."""

    content: Rules | None = None
    """The rules of the answer's text; None allows any text."""
    tools: Sequence[ToolForm] = ()
    """The tools that the answer may call."""
    must_call: bool = False
    """True where the answer must be one or more calls without text."""
    one_call: bool = False
    """True where the answer may hold at most one call."""
    after_thinking: bool = False
    """True where the prompt has opened a thinking block; the answer begins with its rest, which may
    be any text."""

    def text(self, tokenizer: Tokenizer) -> str:
        """Writes the whole grammar as text, for a GrammarCompiler."""
        lines = list(self._lines(tokenizer))
        grammars: list[Rules] = [{"lark_grammar": "\n".join(lines)}]
        if self.content is not None:
            grammars.append({**self.content, "name": "content"})
        for number, tool in enumerate(self.tools):
            grammars.append({**tool.write(), "name": f"arguments_{number}"})
        return json.dumps({"grammars": grammars})

    def _lines(self, tokenizer: Tokenizer) -> Iterator[str]:
        """Yields the lines of the main grammar, in llguidance's variant of Lark."""
        thinking = ""
        if self.after_thinking:
            thinking = "thought /\\n{0,2}/ "
            yield _all_until("thought", END_THINK, tokenizer)
        if not self.tools:
            yield f"start: {thinking}@content"
            return
        more = "" if self.one_call else '("\\n" call)*'
        if self.must_call:
            yield f"start: {thinking}call {more}"
            yield f"call: {_tag(CALL, tokenizer)} called"
        elif self.content is not None:
            yield f"start: {thinking}(@content | call {more})"
            yield f"call: {_tag(CALL, tokenizer)} called"
        else:
            yield f"start: {thinking}(TEXT | text called {more})"
            yield f"TEXT: {_without(CALL)}"
            yield f"call: {_tag(CALL, tokenizer)} called"
            yield _all_until("text", CALL, tokenizer)
        calls = [
            f"{_quote(_call_head(tool.name))} @arguments_{number}"
            for number, tool in enumerate(self.tools)
        ]
        yield f'called: ({" | ".join(calls)}) "}}\\n" {_tag(END_CALL, tokenizer)}'


def json_rules(schema: Mapping[str, Any], *, is_strict: bool = True) -> Rules:
    """Writes the rules of JSON that fits `schema`. An object that lists its properties allows no
    others unless additionalProperties says so, since a small model invents keys if it may. Without
    `is_strict`, keywords that llguidance does not know are left out. Raises ConfigError."""
    options: dict[str, Any] = dict(_AS_WRITTEN)
    if not is_strict:
        options |= {"lenient": True, "coerce_one_of": True}
    try:
        schema = _without_odd_formats(schema)
        closed = dict(schema) if '"allOf"' in json.dumps(schema) else _close(schema)
    except RecursionError:
        raise ConfigError("the schema is nested too deep") from None
    return {"json_schema": {**closed, "x-guidance": options}}


def regex_rules(pattern: str) -> Rules:
    r"""Writes the rules of a text that `pattern`, in Rust's syntax, matches in full. `\d` and `\w`
    match ASCII only."""
    from llguidance import regex_to_lark

    return {"lark_grammar": f"start: /{regex_to_lark(pattern, 'dw')}/"}


def choice_rules(texts: Sequence[str]) -> Rules:
    """Writes the rules of a text that is one of `texts`."""
    return {"lark_grammar": "start: " + " | ".join(_quote(text) for text in texts)}


def grammar_rules(text: str) -> Rules:
    """Reads a grammar in Lark or in llama.cpp's GBNF. Raises ConfigError where GBNF cannot be
    read."""
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        return {"lark_grammar": any_to_lark(text)}
    except Exception as error:  # the converter raises no narrower type
        raise ConfigError(f"the grammar is neither Lark nor GBNF: {error}") from None


FORMS: dict[str, tuple[type | tuple[type, ...], Callable[[Any], Rules]]] = {
    "json_schema": (dict, json_rules),
    "regex": (str, regex_rules),
    "choice": ((list, tuple), choice_rules),
    "grammar": (str, grammar_rules),
}
"""The options of the Python API that constrain a text's form: each one's type, and the function
that writes its rules."""


def take_form(options: dict[str, Any]) -> Rules | None:
    """Removes the option of FORMS that is given from `options`, and gives its rules; None if none
    is given. Raises ConfigError."""
    given = [name for name in FORMS if options.get(name) is not None]
    if len(given) > 1:
        raise ConfigError(f"{given[0]} and {given[1]} exclude each other: give one")
    if not given:
        return None
    (kind, write), value = FORMS[given[0]], options.pop(given[0])
    if not isinstance(value, kind) or not value:
        raise ConfigError(f"{given[0]} is {value!r}, which is empty or of a wrong type")
    return write(value)


def _close(schema: Any) -> Any:
    """Gives the schema with its objects closed against properties they do not list."""
    if not isinstance(schema, Mapping):
        return schema
    closed = dict(schema)
    lists_all = isinstance(schema.get("properties"), Mapping)
    for key, value in schema.items():
        if key in _SCHEMA_MAPS and isinstance(value, Mapping):
            closed[key] = {name: _close(one) for name, one in value.items()}
        elif key in _SCHEMA_LISTS and isinstance(value, list) and not lists_all:
            closed[key] = [_close(one) for one in value]
        elif key in _SCHEMAS:
            closed[key] = _close(value)
    needed = schema.get("required")
    lists_all = lists_all and all(name in schema["properties"] for name in needed or ())
    if lists_all and not any(key in schema for key in _COMPOSES):
        closed.setdefault("additionalProperties", False)
    return closed


def _without_odd_formats(value: Any) -> Any:
    """Gives the schema without formats that JSON Schema does not define, such as OpenAPI's int32 or
    pydantic's path: they are notes and constrain nothing."""
    if isinstance(value, list):
        return [_without_odd_formats(one) for one in value]
    if not isinstance(value, Mapping):
        return value
    return {
        key: one if key in _VALUES else _without_odd_formats(one)
        for key, one in value.items()
        if key != "format" or not isinstance(one, str) or one in _FORMATS
    }


def _call_head(name: str) -> str:
    """Writes a call up to its arguments, as the chat template does."""
    return f'\n{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": '


def _tag(text: str, tokenizer: Tokenizer) -> str:
    """Writes the tag as the tokenizer's added token, which the model was trained to write; as text
    where there is no such token."""
    token = tokenizer.added_ids.get(text)
    return _quote(text) if token is None else f"<[{token}]>"


def _all_until(rule: str, tag: str, tokenizer: Tokenizer) -> str:
    """Yields the lines of a rule for any text up to and including `tag`."""
    if tag not in tokenizer.added_ids:
        return f"{rule}[suffix={_quote(tag)}]: /(?s:.*)/"
    before = f"BEFORE_{rule.upper()}"
    return f"{rule}: {before} {_tag(tag, tokenizer)}\n{before}: {_without(tag)}"


def _without(tag: str) -> str:
    """Writes a rule for any text that does not contain `tag`."""
    spelled = re.escape(tag).replace("/", r"\/")
    return f"/(?s:.*)/ & ~/(?s:.*){spelled}(?s:.*)/"


def _quote(text: str) -> str:
    return json.dumps(text)

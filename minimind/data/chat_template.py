"""Defines the project's chat template in Jinja, and renders templates as `transformers` does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from minimind.errors import DataError
from minimind.runtime.bounded_call import BoundedCallError, call_bounded, limit_memory

_MAX_CHARACTERS = 512 << 20
"""The longest text that a template may give: twice the longest row of a data file."""

CHAT_TEMPLATE = """\
{%- macro turn(role, text) -%}
{{ '<|im_start|>' ~ role ~ '\\n' ~ text ~ '<|im_end|>\\n' }}
{%- endmacro -%}
{%- macro call(tool_call) -%}
{%- set function = tool_call.function if tool_call.function is defined else tool_call -%}
{%- set arguments = function.arguments -%}
{{- '<tool_call>\\n{"name": ' ~ (function.name | tojson) ~ ', "arguments": ' -}}
{{- arguments if arguments is string else arguments | tojson -}}
{{- '}\\n</tool_call>' -}}
{%- endmacro -%}
{%- set system = namespace(text='') -%}
{%- if messages and messages[0].role == 'system' -%}
{%- set system.text = messages[0].content or '' -%}
{%- endif -%}
{%- if tools -%}
{%- set system.text = system.text ~ ('\\n\\n' if system.text else '') ~
    '# Tools\\n\\nThese functions can be called:\\n<tools>\\n' -%}
{%- for tool in tools -%}
{%- set system.text = system.text ~ (tool | tojson) ~ '\\n' -%}
{%- endfor -%}
{%- set system.text = system.text ~ '</tools>\\n\\n' ~
    'To call one, write its name and arguments so:\\n' ~
    '<tool_call>\\n{"name": NAME, "arguments": {…}}\\n</tool_call>' -%}
{%- endif -%}
{%- if tools or (messages and messages[0].role == 'system') -%}
{{- turn('system', system.text) -}}
{%- endif -%}
{%- for message in messages -%}
{%- set content = message.content if message.content is string else '' -%}
{%- if message.role == 'system' and loop.first -%}
{%- elif message.role == 'tool' -%}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}
{{- '<|im_start|>user' -}}
{%- endif -%}
{{- '\\n<tool_response>\\n' ~ content ~ '\\n</tool_response>' -}}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- elif message.role == 'assistant' -%}
{%- set thought = namespace(text='', said=content) -%}
{%- if message.reasoning_content is string -%}
{%- set thought.text = message.reasoning_content -%}
{%- elif '</think>' in content -%}
{%- set parts = content.split('</think>', 1) -%}
{%- set thought.text = parts[0].split('<think>', 1)[-1] -%}
{%- set thought.said = parts[1].lstrip('\\n') -%}
{%- endif -%}
{{- '<|im_start|>assistant\\n<think>\\n' -}}
{{- thought.text.strip('\\n') ~ '\\n</think>\\n\\n' ~ thought.said -}}
{%- for tool_call in message.tool_calls or [] -%}
{{- '\\n' if thought.said or not loop.first -}}
{{- call(tool_call) -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- elif message.role in ('user', 'system') -%}
{{- turn(message.role, content) -}}
{%- else -%}
{{- raise_exception('unknown role ' ~ (message.role | tojson)) -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n<think>\\n' -}}
{{- '' if enable_thinking else '\\n</think>\\n\\n' -}}
{%- endif -%}
"""
"""Gives every assistant turn a thinking block, empty where there was no reasoning. So prompt and
answer read the same while the answer is written and later, in the history."""


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = False,
    enable_thinking: bool = False,
    special_tokens: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> str:
    """Renders a conversation to the text that `transformers`' apply_chat_template gives. The
    template may use the tokenizer's `special_tokens` by name; `options` are further variables.
    Raises DataError where the template cannot be parsed or refuses the messages, and where another
    template than the project's takes too long or needs too much memory."""
    variables = {
        **(options or {}),
        "messages": messages,
        "tools": tools,
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
        "enable_thinking": enable_thinking,
        "open_thinking": enable_thinking,  # the original's name for the option
        **(special_tokens or {}),
    }
    try:
        if template == CHAT_TEMPLATE:
            return _render(template, variables)
        # A template comes with a downloaded tokenizer: its loops and texts may have any length.
        return call_bounded("minimind.data.chat_template:render_bounded", (template, variables))
    except (DataError, BoundedCallError) as error:
        raise DataError(f"the chat template cannot render these messages: {error}") from None


def render_bounded(given: tuple[str, dict[str, Any]]) -> str:
    """Renders a template with its variables, in a worker process. Raises DataError."""
    limit_memory()
    text = _render(*given)
    if len(text) > _MAX_CHARACTERS:
        raise DataError(f"its text has {len(text):,} characters; {_MAX_CHARACTERS:,} are the most")
    return text


def _render(template: str, variables: Mapping[str, Any]) -> str:
    try:
        return _compile(template).render(variables)
    except Exception as error:  # a template may raise anything that an expression raises
        raise DataError(str(error) or type(error).__name__) from None


class _GenerationBlock(jinja2.ext.Extension):
    """Renders `{% generation %}…{% endgeneration %}`, with which some templates mark the
    assistant's text, as its content alone."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 reads a class attribute)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(maxsize=8)
def _compile(template: str) -> jinja2.Template:
    # The sandbox keeps a template from Python's objects.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationBlock, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """Replaces Jinja's tojson filter, which would escape HTML and Chinese."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)

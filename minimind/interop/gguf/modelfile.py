"""Writes a Modelfile, with which `ollama create` makes a model of a GGUF file."""

from __future__ import annotations

from pathlib import Path

from minimind.data.chat_template import CHAT_TEMPLATE
from minimind.data.tokenizer import Tokenizer
from minimind.errors import ConfigError
from minimind.interop.source import Source

_TURN = "<|im_start|>"
# The fields are those of Ollama's template/template.go. Ollama finds the tags of thinking around
# .Thinking, so they make a block of their own. A last turn of the assistant is to be continued.
_TEMPLATE = """\
{{- $open := "OPENING" }}{{ $role := "" }}{{ $system := "" }}{{ $given := false }}
{{- if .Messages }}{{ with index .Messages 0 }}{{ if eq .Role "system" }}
{{- $system = .Content }}{{ $given = true }}{{ end }}{{ end }}{{ end }}
{{- if or .Tools $given }}{{ $open }}system
{{ $system }}
{{- if .Tools }}{{ if $system }}

{{ end }}# Tools

These functions can be called:
<tools>
{{ range .Tools }}{{ . }}
{{ end }}</tools>

To call one, write its name and arguments so:
<tool_call>
{"name": NAME, "arguments": {…}}
</tool_call>{{ end }}<|im_end|>
{{ $open = "<|im_start|>" }}{{ end }}
{{- range $i, $message := .Messages }}
{{- if and (eq $role "tool") (ne .Role "tool") }}<|im_end|>
{{ end }}
{{- if eq .Role "tool" }}{{ if ne $role "tool" }}{{ $open }}user{{ end }}
<tool_response>
{{ .Content }}
</tool_response>
{{- else if eq .Role "assistant" }}{{ $open }}assistant
{{ if true }}<think>
{{ .Thinking }}
</think>

{{ end }}{{ .Content }}
{{- range $n, $call := .ToolCalls }}{{ if or $message.Content $n }}
{{ end }}<tool_call>
{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}
</tool_call>
{{- end }}
{{- if ne (len (slice $.Messages $i)) 1 }}<|im_end|>
{{ end }}
{{- else if or $i (ne .Role "system") }}{{ $open }}{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}
{{- $open = "<|im_start|>" }}{{ $role = .Role }}{{ end }}
{{- if eq $role "tool" }}<|im_end|>
{{ end }}
{{- if ne $role "assistant" }}{{ $open }}assistant
<think>
{{ if not .Think }}
</think>

{{ end }}{{ end }}"""


def modelfile_path(output: Path) -> Path:
    """Gives the path of the Modelfile beside the file `output`."""
    return output.with_name(f"{output.name.removesuffix('.gguf')}.Modelfile")


def modelfile(source: Source, output: Path) -> str:
    """Gives the content of the Modelfile for the GGUF file `output`. Raises ConfigError for a model
    with another chat template than the project's."""
    tokenizer = None if source.tokenizer is None else Tokenizer.load(source.tokenizer)
    if tokenizer is None or tokenizer.chat_template != CHAT_TEMPLATE:
        raise ConfigError(
            f"--modelfile: {source.path} has another chat template than MiniMind's, and Ollama "
            "needs each in its own language: leave --modelfile out and write a Modelfile by hand"
        )
    lines = [
        f"FROM ./{output.name}",
        f'TEMPLATE """{chat_template(tokenizer)}"""',
        'PARAMETER stop "<|im_end|>"',
        f"PARAMETER num_ctx {source.config.max_position_embeddings}",
    ]
    return "\n".join(lines) + "\n"


def chat_template(tokenizer: Tokenizer) -> str:
    """Gives the chat template in Go's language of templates. Ollama puts bos before a prompt, so
    the template leaves it out: docs/decisions/bos-rule.md."""
    begins_with_bos = tokenizer.special_tokens.get("bos_token") == _TURN
    return _TEMPLATE.replace("OPENING", "" if begins_with_bos else _TURN, 1)

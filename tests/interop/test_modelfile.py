"""The Modelfile for Ollama: its chat template gives the text of the project's own."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from gguf_models import model_folder

from minimind.data.chat_template import render_chat
from minimind.errors import ConfigError
from minimind.interop.conversion import convert
from minimind.interop.gguf.modelfile import chat_template
from minimind.interop.options import ConvertOptions
from minimind.samples.text import load_sample_tokenizer

MODELFILE = ConvertOptions(modelfile=True)


def test_a_modelfile_names_its_file(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", "qwen3")
    convert(folder, "gguf", tmp_path / "chat.gguf", MODELFILE)
    text = (tmp_path / "chat.Modelfile").read_text("utf-8")
    assert text.startswith("FROM ./chat.gguf\n")
    assert 'PARAMETER stop "<|im_end|>"\n' in text
    assert "PARAMETER num_ctx 512\n" in text
    assert text.count('"""') == 2
    # Ollama puts bos, <|im_start|>, before the prompt.
    assert '"""{{- $open := "" }}' in text


def test_a_modelfile_that_is_there_stays(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", "qwen3")
    (tmp_path / "chat.Modelfile").write_text("mine")
    with pytest.raises(ConfigError, match=r"chat\.Modelfile: exists already"):
        convert(folder, "gguf", tmp_path / "chat.gguf", MODELFILE)
    assert (tmp_path / "chat.Modelfile").read_text() == "mine"
    assert not (tmp_path / "chat.gguf").exists()


def test_another_chat_template_is_refused(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", "qwen3")
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    config["chat_template"] += " "
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="another chat template than MiniMind's"):
        convert(folder, "gguf", tmp_path / "chat.gguf", MODELFILE)


def test_only_gguf_has_one(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", "qwen3")
    with pytest.raises(ConfigError, match="--modelfile is an option of --to gguf alone"):
        convert(folder, "hf", tmp_path / "out", MODELFILE)


# The types of Ollama's template/template.go that a template sees.
PROGRAM = """
package main
import ("encoding/json"; "os"; "text/template")
type Args map[string]any
func (a Args) String() string { text, _ := json.Marshal(a); return string(text) }
type Tool struct {
    Type string `json:"type"`
    Function struct {
        Name string `json:"name"`
        Description string `json:"description"`
        Parameters map[string]any `json:"parameters"`
    } `json:"function"`
}
func (t Tool) String() string { text, _ := json.Marshal(t); return string(text) }
type Call struct { Function struct { Name string; Arguments Args } }
type Message struct { Role, Content, Thinking string; ToolCalls []Call }
func main() {
    var chats []struct { Messages []*Message; Tools []Tool; Think bool }
    if err := json.NewDecoder(os.Stdin).Decode(&chats); err != nil { panic(err) }
    parsed := template.Must(template.New("").Option("missingkey=zero").Parse(os.Args[1]))
    for _, chat := range chats {
        values := map[string]any{
            "Messages": chat.Messages, "Tools": chat.Tools, "Think": chat.Think,
        }
        if err := parsed.Execute(os.Stdout, values); err != nil { panic(err) }
        os.Stdout.WriteString("\\x00")
    }
}
"""
PARAMETERS = {"properties": {"a": {"type": "integer"}}, "type": "object"}  # in the order of Go
TOOL = {
    "type": "function",
    "function": {"name": "add", "description": "adds", "parameters": PARAMETERS},
}
CALL = {"function": {"name": "add", "arguments": {"a": 1}}}


def turn(role: str, content: str = "", **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


ANSWERED = [
    turn("user", "1+1"),
    turn("assistant", "so", tool_calls=[CALL, CALL]),
    turn("tool", "2"),
    turn("tool", "3"),
]
CHATS: list[tuple[list[dict[str, Any]], list[Any]]] = [
    ([turn("user", "Hi 你好")], []),
    ([turn("system", "Be short."), turn("user", "Hi <b>")], []),
    ([turn("user", "a"), turn("assistant", "b", thinking="hm"), turn("user", "c")], []),
    ([turn("user", "a"), turn("system", "be short"), turn("user", "c")], []),
    ([turn("user", "Hi")], [TOOL]),
    ([turn("system", "S"), *ANSWERED], [TOOL]),
    ([*ANSWERED, turn("assistant", "It is 2"), turn("user", "ok")], [TOOL]),
]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("go") is None, reason="needs Go, whose templates Ollama uses")
def test_go_renders_what_jinja_renders(tmp_path: Path) -> None:
    """All but JSON, which Go writes without spaces."""
    tokenizer = load_sample_tokenizer()
    assert tokenizer.chat_template is not None
    (tmp_path / "main.go").write_text(PROGRAM)
    chats, expected = [], []
    for messages, tools in CHATS:
        for thinking in (False, True):
            theirs = [
                {"ToolCalls" if key == "tool_calls" else key: value for key, value in one.items()}
                for one in messages
            ]
            chats.append({"Messages": theirs, "Tools": tools, "Think": thinking})
            ours = [
                {("reasoning_content" if k == "thinking" else k): v for k, v in one.items()}
                for one in messages
            ]
            expected.append(render_chat(tokenizer.chat_template, ours, tools, True, thinking))
    command = ["go", "run", "main.go", chat_template(tokenizer)]
    text = json.dumps(chats)
    done = subprocess.run(command, cwd=tmp_path, input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [f"<|im_start|>{one}" for one in done.stdout.split("\0")[:-1]]
    assert [without_spaces(one) for one in found] == [without_spaces(one) for one in expected]


def without_spaces(text: str) -> str:
    return re.sub(r'(?<=[:,])\ (?=["{\[\d])', "", text)

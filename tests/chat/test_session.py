"""A conversation is the same whether the model runs here or behind a server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from live_servers import ScriptedEngine, Serve, random_engine
from small_models import random_model, small_config

from minimind.chat import server as chat_server
from minimind.chat.local import LocalChat
from minimind.chat.server import ServerChat
from minimind.chat.session import ChatOptions, ChatSession, Finished, answer_message
from minimind.chat.terminal import Terminal
from minimind.data.tokenizer import Tokenizer
from minimind.errors import ConfigError
from minimind.inference.answer_parser import Content, Part, Reasoning, ToolCall
from minimind.serving.settings import ServerSettings

GREEDY = ChatOptions(temperature=0.0, max_new_tokens=12)


class Parrot:
    """Says what it was asked, in two parts, and keeps what it saw."""

    def __init__(self) -> None:
        self.seen: list[list[dict]] = []
        self.finished = Finished("stop", 3)

    def answer(self, messages, options, tools=()) -> Iterator[Part | Finished]:
        self.seen.append(list(messages))
        text = messages[-1]["content"]
        if text == "fail":
            raise ConfigError("no")
        yield Reasoning("hm")
        yield Content(text)
        yield Content("!")
        yield self.finished


def ask(session: ChatSession, text: str) -> str:
    return "".join(part.text for part in session.ask(text) if isinstance(part, Content))


def test_history_grows_and_is_taken_back() -> None:
    session = ChatSession(Parrot(), system="be kind")
    assert ask(session, "one") == "one!"
    assert ask(session, "two") == "two!"
    system, *turns = session.messages
    assert system == {"role": "system", "content": "be kind"}
    assert [turn["content"] for turn in turns] == ["one", "one!", "two", "two!"]
    assert turns[1]["reasoning_content"] == "hm"
    assert session.backend.seen[1] == session.messages[:-1]  # type: ignore[attr-defined]
    assert session.finished == Finished("stop", 3)
    assert session.forget_last() == "two"
    assert len(session.turns) == 2
    assert session.forget_last() == "one"
    assert session.forget_last() is None


def test_a_failed_question_leaves_no_trace_and_a_stopped_answer_stays() -> None:
    session = ChatSession(Parrot())
    with pytest.raises(ConfigError):
        ask(session, "fail")
    assert session.turns == []
    parts = session.ask("long")
    next(parts)
    next(parts)
    parts.close()  # type: ignore[attr-defined]
    assert [turn["content"] for turn in session.turns] == ["long", "long"]
    assert session.finished is None
    assert session.tokens_per_s is None


def test_where_no_tokens_are_counted_no_speed_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Other servers send no usage."""
    delta = SimpleNamespace(content="yes", tool_calls=None)
    choices = [SimpleNamespace(delta=delta, finish_reason="stop")]
    chunks = [SimpleNamespace(usage=None, choices=choices)] * 2
    expected = [Content("yes"), Content("yes"), Finished("stop", None)]
    assert list(chat_server._read(chunks)) == expected

    parrot = Parrot()
    parrot.finished = Finished("length", None)
    terminal = Terminal(ChatSession(parrot))
    terminal.is_interactive = True
    terminal.take("hello")
    assert terminal.session.tokens_per_s is None
    shown = capsys.readouterr().out.splitlines()[-1]
    assert "tokens," not in shown
    assert shown.startswith("(first token after ")
    assert shown.endswith(", cut off by max_new_tokens)")


def test_what_is_saved_is_training_data(tmp_path: Path) -> None:
    from minimind.data.chat_format import read_chat

    session = ChatSession(Parrot(), system="be kind")
    for text in ("一", "two"):
        ask(session, text)
        session.save(tmp_path / "chats.jsonl")
    lines = (tmp_path / "chats.jsonl").read_text("utf-8").splitlines()
    assert "一" in lines[0]
    chats = [read_chat(json.loads(line)["conversations"], "it") for line in lines]
    assert [len(chat.messages) for chat in chats] == [3, 5]
    with pytest.raises(ConfigError, match="cannot be written"):
        session.save(tmp_path / "none" / "x")


def test_tool_calls_enter_the_history() -> None:
    message = answer_message([Content("x"), ToolCall("id", "f", "{}")])
    assert message["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}


@pytest.mark.parametrize(
    ("assignment", "name", "value"),
    [
        ("temperature=0.25", "temperature", 0.25),
        (" top_k = 7 ", "top_k", 7),
        ("thinking=on", "thinking", True),
        ("thinking=OFF", "thinking", False),
        ("seed=3", "seed", 3),
        ("seed=none", "seed", None),
    ],
)
def test_options(assignment: str, name: str, value: object) -> None:
    assert getattr(ChatOptions(seed=9).change(assignment), name) == value


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("heat=1", "^'heat=1': give NAME=VALUE with one of frequency_penalty"),
        ("temprature=0", r"^'temprature=0' \(did you mean temperature\?\): give"),
        ("temperature", "give NAME=VALUE"),
        ("temperature=hot", "temperature is 'hot'; it must be a number"),
        ("top_k=1.5", "a whole number"),
        ("thinking=maybe", "on or off"),
        ("temperature=-1", "temperature is -1.0; it must be at least 0"),
        ("logprobs=1", "one of frequency_penalty"),
    ],
)
def test_options_that_cannot_be_used(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ChatOptions().change(assignment)


def test_here_and_behind_a_server_the_answers_are_the_same(
    serve: Serve, tokenizer: Tokenizer
) -> None:
    config = small_config(vocab_size=tokenizer.vocab_size, max_position_embeddings=256)
    here = ChatSession(LocalChat(random_model(config), tokenizer), GREEDY)
    server = serve(tiny=random_engine(tokenizer))
    there = ChatSession(ServerChat(server.url), GREEDY)
    for text in ("hello", "你好"):
        assert ask(here, text) == ask(there, text) != ""
        assert here.finished == there.finished
    assert here.turns == there.turns
    with pytest.raises(ConfigError, match="the model's context only 256"):
        ask(here, "word " * 300)
    with pytest.raises(ConfigError, match="context is 256 tokens"):
        ask(there, "word " * 300)


def test_a_stopped_answer_frees_the_model(tokenizer: Tokenizer) -> None:
    config = small_config(vocab_size=tokenizer.vocab_size, max_position_embeddings=256)
    session = ChatSession(LocalChat(random_model(config), tokenizer), GREEDY)
    parts = session.ask("hello")
    next(parts)
    parts.close()  # type: ignore[attr-defined]
    session.turns.clear()
    first = ask(session, "hello")
    session.turns.clear()
    assert ask(session, "hello") == first


def test_thinking_and_tools_come_through_a_server(serve: Serve) -> None:
    call = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
    server = serve(tiny=ScriptedEngine(f"hm\n</think>\n\nyes\n{call}"))
    backend = ServerChat(f"{server.url}/v1/", "tiny")
    tool = {"type": "function", "function": {"name": "f"}}
    turns = [{"role": "user", "content": "q"}]
    parts = list(backend.answer(turns, ChatOptions(thinking=True), [tool]))
    assert "".join(part.text for part in parts if isinstance(part, Reasoning)) == "hm"
    assert "".join(part.text for part in parts if isinstance(part, Content)) == "yes"
    (found,) = [part for part in parts if isinstance(part, ToolCall)]
    assert (found.name, json.loads(found.arguments)) == ("f", {"a": 1})
    assert isinstance(parts[-1], Finished)
    assert parts[-1].reason == "tool_calls"


def test_servers_that_cannot_be_used(serve: Serve) -> None:
    with pytest.raises(ConfigError, match="cannot be reached"):
        ServerChat("http://127.0.0.1:9")
    server = serve(ServerSettings(port=0, api_keys=("k",)), tiny=ScriptedEngine("x"))
    with pytest.raises(ConfigError, match="an API key is needed"):
        ServerChat(server.url)
    with pytest.raises(ConfigError, match="no model 'huge'; it has tiny"):
        ServerChat(server.url, "huge", "k")

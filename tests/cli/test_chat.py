"""minimind chat with a pipe and with a terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_folders import small_folder

from minimind.cli.main import run_verb

LAUNCH = Path(__file__).parents[2] / "launch"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture
def chat(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> Callable[..., tuple]:
    """chat(line, …) -> (exit status, output, errors) of lines that are piped in."""

    def run(*lines: str, flags: tuple[str, ...] = (), stdin: Any = None) -> tuple[int, str, str]:
        given = stdin or io.StringIO("".join(f"{line}\n" for line in lines))
        monkeypatch.setattr(sys, "stdin", given)
        options = ["--set", "temperature=0", "--set", "max_new_tokens=8", *flags]
        status = run_verb("chat", ["--checkpoint", str(folder), *options])
        return status, *capsys.readouterr()

    return run


def test_asked_questions_are_shown_above_their_answers(chat) -> None:
    questions = ["hello", "hello again"]
    status, output, errors = chat("never read", flags=("--ask", *questions))
    assert (status, errors) == (0, "")
    shown = [f"> {question}" for question in questions]
    assert [line for line in output.splitlines() if line.startswith("> ")] == shown
    for line in shown:
        output = output.replace(f"{line}\n", "")
    assert output == chat(*questions)[1]


def test_a_model_of_text_alone_says_so(tmp_path: Path, capsys) -> None:
    small_folder(tmp_path / "model")
    meta = tmp_path / "meta.json"
    ask = ["--checkpoint", str(tmp_path), "--set", "max_new_tokens=2", "--ask", "hello"]
    for is_chat, is_said in ((False, True), (True, False), (None, False)):
        meta.write_text(json.dumps({"is_chat": is_chat}))
        assert run_verb("chat", ask) == 0
        words = "trained on text and never to chat"
        assert (words in capsys.readouterr().err) == is_said
    for broken in ("[]", "{"):
        meta.write_text(broken)
        assert run_verb("chat", ask) == 0
        assert capsys.readouterr().err == ""


def test_piped_questions_get_plain_answers(chat) -> None:
    status, output, errors = chat("hello", "", "hello again")
    assert (status, errors) == (0, "")
    assert len(output.splitlines()) >= 2
    assert "\033" not in output
    assert chat("hello", "", "hello again")[1] == output


def test_bytes_that_are_no_text_are_replaced(chat) -> None:
    given = io.TextIOWrapper(io.BytesIO(b"hello \xff\xfe\n"), encoding="ascii")
    status, output, errors = chat(stdin=given)
    assert (status, errors) == (0, "")
    assert output == chat("hello \ufffd\ufffd")[1]


def test_commands(chat, tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    status, output, errors = chat(
        *("/help", "/system be kind", "hello", "/retry", "/thinking on", "/set top_k=5"),
        *("hello", "/clear", "//slash", f"/save {file}", "/exit", "/nonsense"),
    )
    assert (status, errors) == (0, "")
    assert "Ctrl-C stops an answer" in output
    assert "(system prompt: be kind)" in output
    assert "(thinking on)" in output
    assert "<think>" in output
    assert "top_k=5" in output
    saved = file.read_text("utf-8")
    assert '"be kind"' in saved
    assert '"/slash"' in saved
    assert "hello" not in saved


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/nonsense", "there is no command /nonsense"),
        ("/retry", "no question yet"),
        ("/save", "needs a file"),
        ("/set heat=1", "one of frequency_penalty"),
        ("/set temperature=-1\nhello", "temperature is -1.0"),
        ("word " * 300, "the model's context only"),
    ],
)
def test_what_cannot_be_done_is_said(chat, line: str, message: str) -> None:
    status, _, errors = chat(line)
    assert status == 1
    assert message in errors


def test_folders_and_options_that_cannot_be_used(chat, tmp_path: Path) -> None:
    assert "neither a run's folder" in chat(flags=("--checkpoint", str(tmp_path)))[2]
    status, _, errors = chat(flags=("--set", "heat=1"))
    assert status == 2
    assert "one of frequency_penalty" in errors


@pytest.mark.parametrize("terminal", ["dumb", "xterm-256color"])
def test_in_a_terminal(folder: Path, tmp_path: Path, terminal: str) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, str(LAUNCH / "chat.py"), "--checkpoint", str(folder)]
    environment = {
        **os.environ,
        "TERM": terminal,
        "XDG_STATE_HOME": str(tmp_path),
        "MINIMIND_COMPILE": "0",
        "PROMPT_TOOLKIT_NO_CPR": "1",
    }
    process = subprocess.Popen(
        [*command, "--set", "max_new_tokens=8"],
        env=environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    screen = Screen(ours)
    try:
        screen.wait_for(">")
        os.write(ours, b"hello\r")
        shown = screen.wait_for("tokens/s")
        assert ("\033[2m" in shown) is (terminal != "dumb")
        screen.wait_for(">")
        os.write(ours, b"\x04")
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    history = tmp_path / "minimind" / "chat_history"
    assert history.exists() is (terminal != "dumb")


class Screen:
    """What a terminal shows, read bit by bit."""

    def __init__(self, terminal: int) -> None:
        self._terminal = terminal
        self._unread = ""

    def wait_for(self, text: str) -> str:
        """What is shown up to `text`."""
        deadline = time.monotonic() + 30
        while text not in self._unread:
            assert time.monotonic() < deadline, self._unread
            if select.select([self._terminal], [], [], 0.1)[0]:
                self._unread += os.read(self._terminal, 65536).decode(errors="replace")
        shown, _, self._unread = self._unread.partition(text)
        return shown

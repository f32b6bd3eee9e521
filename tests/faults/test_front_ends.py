"""What a model says reaches neither the terminal's controls nor other servers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimind.chat.markdown import without_images
from minimind.chat.session import ChatSession, Finished
from minimind.chat.terminal import Terminal
from minimind.inference.answer_parser import Content, Part, Reasoning, ToolCall
from minimind.runtime.printable import printable

LAUNCH = Path(__file__).parents[2] / "launch"
HOSTILE = "\x1b]52;c;aGk=\x07 \x9b2J \u202eevil \x1b]0;title\x1b\\ \x08\x7f\rover"


class Hostile:
    def answer(self, *_: object) -> Iterator[Part | Finished]:
        yield Reasoning(HOSTILE)
        yield Content(HOSTILE)
        yield ToolCall("1", HOSTILE, HOSTILE)
        yield Finished("stop", 1)


@pytest.mark.faults(
    "an answer with terminal sequences (clipboard, title, U+202E)", "shown as U+FFFD"
)
def test_the_terminal_obeys_no_answer(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(ChatSession(Hostile()))
    terminal.take("hello")
    shown = capsys.readouterr().out
    assert not set("\x1b\x07\x9b\u202e\x08\x7f\r") & set(shown)
    assert shown.count("\ufffd]52;c;aGk=\ufffd") == 4
    assert terminal.session.turns[-1]["content"] == HOSTILE, "what is saved is what was said"


@given(st.text(), st.integers(0, 50))
def test_pieces_are_printed_as_the_whole(text: str, at: int) -> None:
    assert printable(text[:at]) + printable(text[at:]) == printable(text)
    assert printable("a\tb\n中文 é 🙂") == "a\tb\n中文 é 🙂"


@pytest.mark.faults(
    "an answer with an image of another server", "shown as a link; nothing is loaded"
)
@pytest.mark.parametrize(
    "text",
    ["![x](http://a/b?secret)", "![x][r]\n\n[r]: http://a/b", "\\![x](http://a)", "[![x](u)](v)",
     "```\n![x](u)\n```"],
)  # fmt: skip
def test_no_image_is_left(text: str) -> None:
    markdown = pytest.importorskip("markdown_it")
    assert "![" not in without_images(text)
    assert "<img" not in markdown.MarkdownIt().render(without_images(text))


def test_code_stays_as_it_is() -> None:
    code = '```rust\nlet a = vec![1, 2];\nprintln!["{}", a[0]];\n```'
    assert without_images(code) == code


@pytest.mark.slow
@pytest.mark.faults("SIGTERM to the web page's command", "the page ends too")
def test_the_web_page_ends_with_its_command(tmp_path: Path) -> None:
    pytest.importorskip("streamlit")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, str(LAUNCH / "web.py"), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            return httpx.get(url, timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    try:
        until = time.monotonic() + 120
        while not answers():
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    finally:
        process.kill()
    assert not answers()
    assert not os.path.exists(f"/proc/{process.pid}/cmdline")

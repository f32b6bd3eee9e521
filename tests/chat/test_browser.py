"""The web page in a real browser: Chromium, where one is installed, driven by Playwright."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_servers import ScriptedEngine, Serve
from training_runs import ROOT

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
if BROWSER is None:
    pytest.skip("needs Chromium: apt-get install chromium", allow_module_level=True)
pytest.importorskip("streamlit", reason="needs Streamlit (extra `web`)")
playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright (extra `dev`)")

WAIT_MS = 60_000
ASK = {"en-US": "Write a message", "zh-CN": "输入消息"}


@pytest.fixture
def page_url(serve: Serve, tmp_path: Path) -> Iterator[str]:
    """launch/web.py over a server whose model always says the same."""
    server = serve(tiny=ScriptedEngine("hm\n</think>\n\nThe **river** is the 塞拉河."))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "launch" / "web.py"), "--server", server.url]
    with open(tmp_path / "web.log", "wb") as log:
        # A group of its own, because Streamlit is a child of the program.
        process = subprocess.Popen(
            [*command, "--port", str(port)], stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert process.poll() is None, (tmp_path / "web.log").read_text()
            assert time.monotonic() < deadline, "the page never came up"
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 15)
        process.wait(20)


def test_a_chat_of_two_turns(page_url: str, tmp_path: Path) -> None:
    """On a desk in English, on a phone in Chinese."""
    with playwright.sync_playwright() as driver:
        # A container's root user has no sandbox to start.
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        for width, language in ((1280, "en-US"), (390, "zh-CN")):
            page = browser.new_page(viewport={"width": width, "height": 800}, locale=language)
            errors: list[Any] = []
            # Playwright marks the functions it calls, which it cannot do to a list's method.
            page.on("pageerror", lambda error, errors=errors: errors.append(error))
            page.goto(page_url)
            box = page.get_by_placeholder(ASK[language])
            for turn in (1, 2):
                box.fill(f"question {turn}", timeout=WAIT_MS)
                box.press("Enter")
                answers = page.locator('[data-testid="stChatMessage"] strong')
                playwright.expect(answers).to_have_count(turn, timeout=WAIT_MS)
            playwright.expect(page.locator('[data-testid="stChatMessage"]')).to_have_count(4)
            page.screenshot(path=str(tmp_path / f"{language}.png"))
            # Nothing reaches beyond the screen's edge, and the box to write in is on it.
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert box.is_visible()
            assert not errors
        browser.close()

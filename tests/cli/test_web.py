"""minimind web starts the page over the server that is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from minimind.cli import web as verb

pytest.importorskip("streamlit", reason="needs Streamlit (extra `web`)")


def test_the_page_is_run_for_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def become(program: str, command: list[str], env: dict[str, str]) -> None:
        started.append((command, env))

    monkeypatch.setattr(verb.os, "execve", become)
    verb.main(["--server", "http://host:1", "--port", "9"])
    ((command, environment),) = started
    assert Path(command[4]).is_file()
    assert environment["MINIMIND_SERVER"] == "http://host:1"
    assert "--server.address=127.0.0.1" in command, "loopback unless told"
    assert "--server.port=9" in command
    assert "--browser.gatherUsageStats=false" in command

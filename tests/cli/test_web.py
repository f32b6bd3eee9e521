"""minimind web starts the page over the server that is named."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from minimind.cli import web as verb

pytest.importorskip("streamlit", reason="needs Streamlit (extra `web`)")


def test_the_page_is_run_for_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def run(command: list[str], env: dict[str, str], check: bool):
        started.append((command, env))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(verb.subprocess, "run", run)
    assert verb.main(["--server", "http://host:1", "--port", "9"]) == 0
    ((command, environment),) = started
    assert Path(command[4]).is_file()
    assert environment["MINIMIND_SERVER"] == "http://host:1"
    assert "--server.address=127.0.0.1" in command, "loopback unless told"
    assert "--server.port=9" in command
    assert "--browser.gatherUsageStats=false" in command

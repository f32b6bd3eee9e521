"""launch/serve.py as its users start and stop it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx2 as httpx
import pytest
from small_folders import small_folder

from minimind.errors import ConfigError

LAUNCH = Path(__file__).parents[2] / "launch"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(LAUNCH))
    import serve

    return serve


def test_it_serves_until_sigterm(folder: Path) -> None:
    command = [sys.executable, str(LAUNCH / "serve.py"), "--checkpoint", str(folder)]
    command += ["--checkpoint", f"other={folder}", "--port", "0"]
    environment = {**os.environ, "MINIMIND_API_KEY": "k", "MINIMIND_COMPILE": "0"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        lines = []
        while not lines or not lines[-1]["message"].startswith("ready"):
            lines.append(json.loads(process.stderr.readline()))
        listening = next(line for line in lines if line["message"].startswith("listening"))
        assert lines[-1]["message"] == "ready: small, other"
        url = listening["message"].removeprefix("listening on ")
        ask = {"model": "other", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
        headers = {"authorization": "Bearer k"}
        response = httpx.post(f"{url}/v1/chat/completions", json=ask, headers=headers, timeout=30)
        assert response.json()["usage"]["completion_tokens"] == 3
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--host", "0.0.0.0"], "there is no API key"),
        (["--checkpoint", "/nowhere"], "neither a run's folder"),
        (["--checkpoint", "SAME"], "is taken"),
        (["--max_waiting", "0"], "max_waiting is 0"),
        (["--api_key_file", "/nowhere"], "cannot be read"),
    ],
)
def test_what_cannot_be_served_is_said(
    script, folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch, flags, message
) -> None:
    monkeypatch.setattr(script, "set_up_server_logging", lambda: None)
    flags = [str(folder) if flag == "SAME" else flag for flag in flags]
    assert script.main(["--checkpoint", str(folder), *flags]) == 2
    assert message in caplog.text


def test_keys_come_from_flag_file_and_environment(
    script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys"
    file.write_text("one\n\n two \n")
    monkeypatch.setenv("MINIMIND_API_KEY", "three")
    assert script.read_keys("four", file) == ("four", "three", "one", "two")
    file.write_text("\n")
    with pytest.raises(ConfigError, match="no key in it"):
        script.read_keys(None, file)

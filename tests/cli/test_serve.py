"""minimind serve as its users start and stop it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx2 as httpx
import pytest
from small_adapters import random_adapter
from small_folders import small_folder

from minimind.cli import serve as verb
from minimind.errors import ConfigError
from minimind.lora.folder import BaseModel, load_folder_config
from minimind.lora.peft_format import save_adapter
from minimind.samples.text import load_sample_tokenizer
from minimind.serving.metrics import ServerMetrics
from minimind.serving.service import Service
from minimind.serving.settings import ServerSettings
from minimind.serving.text_schemas import CompletionRequest

LAUNCH = Path(__file__).parents[2] / "launch"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder(tmp_path_factory.mktemp("models") / "small")


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
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch, flags, message
) -> None:
    monkeypatch.setattr(verb, "set_up_server_logging", lambda: None)
    flags = [str(folder) if flag == "SAME" else flag for flag in flags]
    assert verb.main(["--checkpoint", str(folder), *flags]) == 2
    assert message in caplog.text


@pytest.fixture
def adapter(folder: Path) -> Path:
    """Beside the folder's weights."""
    config = load_folder_config(folder)
    path = folder.parent / "tuned"
    save_adapter(path, config, random_adapter(config), BaseModel.of(folder))
    load_sample_tokenizer().save(path)
    return path


def test_an_adapter_is_a_model_of_its_own(folder: Path, adapter: Path) -> None:
    """Over the checkpoint it was trained beside, and as if it were merged into it."""
    parser = verb._build_parser()
    flags = ["--checkpoint", str(folder), "--adapter", f"poet={adapter}", "--dtype", "fp32"]
    sources = verb.read_sources(parser.parse_args(flags))
    assert dict(sources["small"].adapters) == {"poet": adapter}
    merged = verb.read_sources(
        parser.parse_args(["--checkpoint", f"merged={adapter}", "--dtype", "fp32"])
    )

    async def answers() -> dict[str, str]:
        service = Service(ServerSettings())
        await service.load({**sources, **merged})
        found = {}
        read: dict[str, float] = {}
        body = CompletionRequest(prompt="6 + 9", max_tokens=12, temperature=0, logprobs=0)
        for name in ("small", "poet", "small", "merged"):
            model = service.find(name)
            prompts = model.read_texts(body, body.prompt, "prompt")
            answer = model.thread.submit(model.completion_requests(body, prompts), 30)
            text = "".join([delta.text async for _, delta in answer.deltas()])
            assert found.setdefault(name, text) == text
            (echo,) = await model.echoes(body, prompts)
            read[name] = echo.logprobs[-1].logprob
        assert "small" in ServerMetrics(lambda: service.models).text().decode()
        assert "poet" not in ServerMetrics(lambda: service.models).text().decode()
        await service.close()
        assert read["poet"] == pytest.approx(read["merged"], abs=1e-3)
        assert abs(read["poet"] - read["small"]) > 1e-3, "prompts are read with the adapter too"
        return found

    found = asyncio.run(answers())
    assert found["poet"] == found["merged"] != found["small"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("ADAPTER", "give NAME=FOLDER"),
        ("small=ADAPTER", "with a name of its own"),
        ("poet=FOLDER", "a whole model"),
        ("poet=STRANGER", "which no --checkpoint gives"),
    ],
)
def test_an_adapter_that_does_not_belong(
    folder: Path, adapter: Path, tmp_path: Path, given: str, message: str
) -> None:
    other = small_folder(tmp_path / "other", seed=1)
    stranger, config = tmp_path / "stranger", load_folder_config(other)
    save_adapter(stranger, config, random_adapter(config), BaseModel.of(other))
    for word, path in (("ADAPTER", adapter), ("FOLDER", folder), ("STRANGER", stranger)):
        given = given.replace(word, str(path))
    arguments = ["--checkpoint", str(folder), "--adapter", given]
    with pytest.raises(ConfigError, match=message):
        verb.read_sources(verb._build_parser().parse_args(arguments))


def test_keys_come_from_flag_file_and_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys"
    file.write_text("one\n\n two \n")
    monkeypatch.setenv("MINIMIND_API_KEY", "three")
    assert verb.read_keys("four", file) == ("four", "three", "one", "two")
    file.write_text("\n")
    with pytest.raises(ConfigError, match="no key in it"):
        verb.read_keys(None, file)

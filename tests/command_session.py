"""Runs the commands and the Python of a document in one folder, in their order: in this process at
small sizes (SmallSession), or as they are written (WholeSession)."""

from __future__ import annotations

import asyncio
import functools
import re
import shutil
import subprocess
import threading
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest
from documents import Fence, read_document
from readme_commands import (
    Command,
    as_verb,
    check_foreign,
    environment,
    expand_make,
    output_of,
    read_commands,
    run_for_real,
    run_here,
    shrink,
    unmade_inputs,
    write_inputs,
)

import minimind
from minimind.cli import serve as serve_verb
from minimind.cli import web as web_verb
from minimind.llm import LLM
from minimind.runtime.ranks import free_port
from minimind.serving.server import ApiServer, listen
from minimind.serving.service import ModelSource, Service
from minimind.serving.settings import ServerSettings

_ADDRESS = "127.0.0.1:8000"
"""Where the documents' server listens."""
_SMALL_RUN: dict[str, Any] = {
    "max_steps": 2, "batch_size": 2, "seq_len": 128, "micro_batch_size": 2, "eval_rows": 2,
    "data": "sample-chat.jsonl",
}  # fmt: skip
"""The options that make a `minimind.train(stage="sft", …)` of a document small."""


class Session(ABC):
    """Runs a document's steps in a folder. Servers that it starts end with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def run_page(self, path: Path, trained: Path) -> None:
        """Runs every command and every block of Python. `trained` is a run that stands in the place
        of those that the document begins with. Raises AssertionError for a step that fails."""
        commands = read_commands(path)
        write_inputs(commands, self.folder)
        for name in unmade_inputs(commands):
            shutil.copytree(trained, self.folder / name, symlinks=True)
        blocks = [fence for fence in read_document(path).fences if fence.language == "python"]
        steps: list[tuple[int, Command | Fence]] = [(c.line, c) for c in commands]
        steps += [(fence.line, fence) for fence in blocks]
        for _, step in sorted(steps, key=lambda one: one[0]):
            if isinstance(step, Fence):
                self.run_python(step)
            else:
                self.run_command(step)

    def run_command(self, command: Command) -> None:
        command = replace(
            command,
            words=tuple(word.replace(_ADDRESS, f"127.0.0.1:{self.port}") for word in command.words),
        )
        found = as_verb(command)
        if command.words[0] == "make":
            if shutil.which("make"):
                for one in expand_make(command):
                    self.run_command(one)
        elif command.words[0] == "curl":
            self.call(command)
        elif found is None:
            check_foreign(command, self.folder)
        elif found[0] == "serve":
            self.serve(command, found[1])
        elif found[0] == "web":
            self.open_page(command, found[1])
        else:
            self.run_verb(command, *found)
            made = output_of(found[1])
            assert made is None or (self.folder / made).exists(), f"{command}: made no {made}"

    def call(self, command: Command) -> None:
        """Runs curl."""
        if shutil.which("curl"):
            said = run_for_real(command, ["--fail", "--silent", "--show-error"], self.folder)
            assert "[DONE]" in said or "{" in said, f"{command}: {said}"

    @abstractmethod
    def run_verb(self, command: Command, verb: str, flags: Sequence[str]) -> None: ...

    @abstractmethod
    def serve(self, command: Command, flags: Sequence[str]) -> None:
        """Starts the server on a free port, which becomes `port`."""

    @abstractmethod
    def open_page(self, command: Command, flags: Sequence[str]) -> None: ...

    @abstractmethod
    def run_python(self, block: Fence) -> None: ...


class SmallSession(Session):
    """Runs verbs in this process."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(folder)
        self._monkeypatch = monkeypatch

    def run_verb(self, command: Command, verb: str, flags: Sequence[str]) -> None:
        assert run_here(verb, flags) == 0, command

    def serve(self, command: Command, flags: Sequence[str]) -> None:
        def start(sources: dict[str, ModelSource], settings: ServerSettings) -> None:
            settings.check()
            ready = threading.Event()
            servers: list[ApiServer] = []

            async def run() -> None:
                service = Service(settings)
                server = ApiServer(service)
                listener = listen(replace(settings, port=0))
                self.port = listener.getsockname()[1]
                running = asyncio.create_task(server.serve(sockets=[listener]))
                await service.load(sources)
                servers.append(server)
                ready.set()
                await running

            thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
            thread.start()
            assert ready.wait(60), command

            def stop() -> None:
                servers[0].should_exit = True
                thread.join(20)

            self._stack.callback(stop)

        self._monkeypatch.setattr(serve_verb, "serve", start)
        assert run_here("serve", flags) == 0, command

    def open_page(self, command: Command, flags: Sequence[str]) -> None:
        started: list[str] = []
        self._monkeypatch.setattr(
            web_verb.os, "execve", lambda program, words, env: started.append(program)
        )
        run_here("web", flags)
        assert started, command

    def run_python(self, block: Fence) -> None:
        class SmallLLM(LLM):
            def stream(self, *given: Any, **options: Any) -> Any:
                return super().stream(*given, **({"max_new_tokens": 8} | options))

        with self._monkeypatch.context() as patch:
            whole = minimind.train
            patch.setattr(minimind, "train", functools.partial(whole, **_SMALL_RUN), raising=False)
            patch.setattr(minimind, "LLM", SmallLLM, raising=False)
            exec(compile(block.text, f"line {block.line}", "exec"), {})


class WholeSession(Session):
    """Runs programs as they are written, at small sizes."""

    def run_verb(self, command: Command, verb: str, flags: Sequence[str]) -> None:
        run_for_real(command, shrink(verb, flags), self.folder)

    def serve(self, command: Command, flags: Sequence[str]) -> None:
        self.port = free_port()
        self._start(command, "--port", str(self.port))
        self._wait_for(f"http://127.0.0.1:{self.port}/v1/models", command)

    def open_page(self, command: Command, flags: Sequence[str]) -> None:
        pytest.importorskip("streamlit", reason="needs Streamlit (extra `web`)")
        port = free_port()
        self._start(command, "--port", str(port))
        self._wait_for(f"http://127.0.0.1:{port}/", command)

    def _start(self, command: Command, *flags: str) -> None:
        process = subprocess.Popen(
            [*command.words, *flags],
            cwd=self.folder,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

        def stop() -> None:
            process.terminate()
            process.wait(30)

        self._stack.callback(stop)

    def _wait_for(self, url: str, command: Command) -> None:
        end = time.monotonic() + 120
        while time.monotonic() < end:
            try:
                with urllib.request.urlopen(url, timeout=10) as answer:
                    assert answer.status == 200, command
                    return
            except OSError:
                time.sleep(0.2)
        raise AssertionError(f"{command}: nothing answers at {url}")

    def run_python(self, block: Fence) -> None:
        options = ", ".join(f"{name}={value!r}" for name, value in _SMALL_RUN.items())
        text = re.sub(r"minimind\.train\(", f"minimind.train({options}, ", block.text)
        run_for_real(Command("Python", block.line, ("python", "-c", text)), [], self.folder)

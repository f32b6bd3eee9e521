"""Runs servers for tests: over a random model, and over an engine that gives the text that a test
wants."""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import pytest
from small_models import random_model, small_config

from minimind.data.tokenizer import Tokenizer
from minimind.inference.batch_engine import BatchEngine
from minimind.inference.request import Delta, EngineStats, GenerationRequest
from minimind.serving.server import ApiServer, listen
from minimind.serving.service import Service
from minimind.serving.settings import ServerSettings


def random_engine(tokenizer: Tokenizer, max_batch: int = 4, context: int = 256) -> BatchEngine:
    """Gives an engine over a random model."""
    config = small_config(vocab_size=tokenizer.vocab_size, max_position_embeddings=context)
    model = random_model(config)
    return BatchEngine(model, tokenizer, max_batch=max_batch, grammar_limit_s=10.0)


@dataclass
class ScriptedEngine:
    """Answers every request with `text`, a few characters per step, or fails as told."""

    text: str = ""
    piece: int = 3
    step_s: float = 0.0
    error: Exception | None = None
    max_sequence: int = 4096
    max_batch: int = 4
    open: dict[int, list[str]] = field(default_factory=dict)
    requests: list[GenerationRequest] = field(default_factory=list)
    grammars: object = None

    def __post_init__(self) -> None:
        self._ids = itertools.count(1)
        self._cancelled: set[int] = set()
        self._made: dict[int, int] = {}

    @property
    def has_work(self) -> bool:
        return bool(self.open)

    @property
    def stats(self) -> EngineStats:
        return EngineStats(
            running=len(self.open),
            waiting=0,
            free_slots=self.max_batch - len(self.open),
            prompt_tokens=0,
            cached_tokens=0,
            completion_tokens=0,
        )

    def submit(self, request: GenerationRequest) -> int:
        id = next(self._ids)
        pieces = [self.text[i : i + self.piece] for i in range(0, len(self.text), self.piece)]
        self.open[id] = pieces or [""]
        self.requests.append(request)
        self._made[id] = 0
        return id

    def cancel(self, request_id: int) -> None:
        self._cancelled.add(request_id)

    def step(self) -> list[Delta]:
        time.sleep(self.step_s)
        if self.error is not None:
            raise self.error
        return [self._advance(id) for id in list(self.open)]

    def _advance(self, id: int) -> Delta:
        pieces = self.open[id]
        self._made[id] += 1
        reason = None
        text = ""
        if id in self._cancelled:
            reason = "cancelled"
        else:
            text = pieces.pop(0)
            reason = None if pieces else "stop"
        if reason is not None:
            del self.open[id]
        counts = {"prompt_tokens": 7, "cached_tokens": 2, "completion_tokens": self._made[id]}
        return Delta(request_id=id, text=text, ids=(30,), finish_reason=reason, **counts)


@dataclass
class LiveServer:
    url: str
    service: Service
    stop: Callable[[], None]
    call: Callable[[Callable[[], None]], object]
    """Runs a function in the server's event loop."""

    def engine(self, name: str = "tiny"):
        return self.service.models[name].thread.engine


Engines = dict[str, object]
Serve = Callable[..., "LiveServer"]


@contextmanager
def running_server(
    engines: Engines, tokenizer: Tokenizer, settings: ServerSettings
) -> Iterator[LiveServer]:
    """Runs a server on a free port, in a thread with an event loop of its own."""
    ready = threading.Event()
    found: list[LiveServer] = []

    async def run() -> None:
        service = Service(settings)
        for name, engine in engines.items():
            service.add(name, engine, tokenizer)
        service.is_loading = False
        server = ApiServer(service)
        listener = listen(settings)

        def stop() -> None:
            server.should_exit = True

        loop = asyncio.get_running_loop()
        port = listener.getsockname()[1]
        found.append(
            LiveServer(f"http://127.0.0.1:{port}", service, stop, loop.call_soon_threadsafe)
        )
        running = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.005)
        ready.set()
        await running

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert ready.wait(10)
    yield found[0]
    found[0].stop()
    thread.join(20)
    assert not thread.is_alive()


def open_socket(server: LiveServer) -> socket.socket:
    host, _, port = server.url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=20)


def read_all(connection: socket.socket) -> bytes:
    received = b""
    while piece := connection.recv(4096):
        received += piece
    return received


@pytest.fixture
def serve(tokenizer: Tokenizer) -> Iterator[Serve]:
    """Gives a function, serve(name=engine, …, settings=…), that starts a server until the test
    ends."""
    with ExitStack() as stack:

        def start(settings: ServerSettings | None = None, **engines: object) -> LiveServer:
            chosen = settings or ServerSettings(port=0)
            return stack.enter_context(running_server(engines, tokenizer, chosen))

        yield start

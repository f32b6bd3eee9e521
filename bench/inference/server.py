"""Measures the server's row of bench.inference: launch/serve.py under clients that never pause."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx

from bench import harness
from bench.harness import ROOT, Columns, Row, shown
from bench.inference.rows import InferenceSpec
from bench.processes import kill_with_children, own_environment
from bench.workers import WorkerError, peak_resident, reset_peak_resident

_START_S = 120
_PRECISIONS = {"torch.float32": "fp32", "torch.bfloat16": "bf16"}


@dataclass(frozen=True, slots=True)
class CallTime:
    """Times one streamed completion, as its client saw it."""

    first_token_s: float
    total_s: float
    tokens: int


@contextmanager
def running_server(spec: InferenceSpec) -> Iterator[tuple[str, int]]:
    """Starts a server with `spec.batch` slots for the block; gives its address and process id.
    Raises WorkerError where it does not start."""
    command = [sys.executable, str(ROOT / "launch" / "serve.py")]
    command += ["--checkpoint", f"model={spec.folder}", "--port", "0"]
    command += ["--dtype", _PRECISIONS[str(spec.dtype)], "--max_batch", str(spec.batch)]
    log_file = spec.folder / "server.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, env=own_environment(), stderr=log)
    try:
        yield _wait_until_ready(process, log_file), process.pid
    finally:
        kill_with_children(process)


def _wait_until_ready(process: subprocess.Popen[bytes], log_file: Path) -> str:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        messages = [
            json.loads(line).get("message", "")
            for line in log_file.read_text("utf-8").splitlines(keepends=True)
            if line.startswith("{") and line.endswith("\n")
        ]
        if any(message.startswith("ready") for message in messages):
            listening = next(m for m in messages if m.startswith("listening"))
            return listening.removeprefix("listening on ")
        time.sleep(0.05)
    raise WorkerError(f"the server did not start:\n{log_file.read_text('utf-8')[-2000:]}")


def measure_clients(
    url: str, process: int, spec: InferenceSpec, clients: int, calls: int, seed: int
) -> dict[str, Any]:
    """Gives a row: `clients` streams at once, `calls` calls in all, each for as many tokens as the
    spec says. Before that each client makes one call that is not measured. Raises WorkerError for a
    call that fails."""
    asyncio.run(_load(url, spec, clients, clients, seed))
    reset_peak_resident(process)
    started = time.perf_counter()
    times = asyncio.run(_load(url, spec, clients, calls, seed + 1))
    seconds = time.perf_counter() - started
    tokens = sum(one.tokens for one in times)
    return {
        "name": "server",
        "clients": clients,
        "slots": spec.batch,
        "precision": _PRECISIONS[str(spec.dtype)],
        "prompt_tokens": spec.prompt_tokens,
        "new_tokens": spec.new_tokens,
        "calls": calls,
        "calls_per_s": calls / seconds,
        "useful_tokens_per_s": tokens / seconds,
        "first_token_s": harness.summarize([one.first_token_s for one in times]),
        "latency_s": harness.summarize([one.total_s for one in times]),
        "peak_resident_bytes": peak_resident(process),
    }


async def _load(
    url: str, spec: InferenceSpec, clients: int, calls: int, seed: int
) -> list[CallTime]:
    generator = random.Random(seed)
    prompts = iter(
        # Beyond the reserved ids, one of which would end an answer that repeats it.
        [generator.choices(range(100, 1000), k=spec.prompt_tokens) for _ in range(calls)]
    )

    async def client_loop() -> list[CallTime]:
        async with httpx.AsyncClient(base_url=url, timeout=300) as client:
            return [await _call(client, prompt, spec.new_tokens) for prompt in prompts]

    of_clients = await asyncio.gather(*(client_loop() for _ in range(clients)))
    return [one for times in of_clients for one in times]


async def _call(client: httpx.AsyncClient, prompt: Sequence[int], new_tokens: int) -> CallTime:
    body = {
        "model": "model",
        "prompt": list(prompt),
        "max_tokens": new_tokens,
        "temperature": 0,
        # A random model's tokens may have no text; with this field each token still makes an event.
        "logprobs": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    started = time.perf_counter()
    first, tokens, last = 0.0, 0, ""
    async with client.stream("POST", "/v1/completions", json=body) as response:
        async for line in response.aiter_lines():
            if not line:
                continue
            last = line
            first = first or time.perf_counter() - started
            if '"usage":{' in line:
                tokens = json.loads(line.removeprefix("data: "))["usage"]["completion_tokens"]
    if response.status_code != 200 or last != "data: [DONE]":
        raise WorkerError(f"the server answered {response.status_code}: {last}")
    return CallTime(first, time.perf_counter() - started, tokens)


def format_rows(rows: Sequence[Row]) -> str:
    columns: Columns = {
        "server": lambda row: f"{row['clients']} clients",
        "slots": lambda row: str(row["slots"]),
        "precision": lambda row: row["precision"],
        "tokens/s": lambda row: shown(row["useful_tokens_per_s"]),
        "calls/s": lambda row: shown(row["calls_per_s"], ",.1f"),
        "first token ms": lambda row: shown(1e3 * row["first_token_s"]["median"]),
        "its p90": lambda row: shown(1e3 * row["first_token_s"]["p90"]),
        "answer ms": lambda row: shown(1e3 * row["latency_s"]["median"]),
        "the answer's p90": lambda row: shown(1e3 * row["latency_s"]["p90"]),
        "peak resident MB": lambda row: shown(row["peak_resident_bytes"], per=1e6),
    }
    return harness.format_rows(rows, columns)

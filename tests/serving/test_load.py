"""Many clients at once, a third of them gone midway: no error and no slot that stays taken."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import httpx2 as httpx
import psutil
import pytest
from live_servers import LiveServer, ScriptedEngine, Serve, random_engine

from minimind.data.tokenizer import Tokenizer
from minimind.serving.settings import ServerSettings

MB = 1 << 20


async def one_call(client: httpx.AsyncClient, dice: random.Random, leaves: bool) -> str:
    """What became of it: "whole", "left" or what was wrong."""
    path, body = some_request(dice)
    if not body["stream"]:
        limit = dice.uniform(0.001, 0.05) if leaves else 60.0
        try:
            response = await client.post(path, json=body, timeout=limit)
        except httpx.TimeoutException:
            return "left" if leaves else "too slow"
        return "whole" if response.status_code == 200 else response.text
    async with client.stream("POST", path, json=body, timeout=60) as response:
        if response.status_code != 200:
            return (await response.aread()).decode()
        last = ""
        number = 0
        async for line in response.aiter_lines():
            if "error" in line:
                return line
            number += bool(line)
            last = line or last
            if leaves and number == 3:
                return "left"
        return "whole" if last == "data: [DONE]" else f"ends with {last}"


def some_request(dice: random.Random) -> tuple[str, dict[str, Any]]:
    body: dict[str, Any] = {
        "model": "tiny",
        "max_tokens": dice.randint(1, 24),
        "temperature": dice.choice([0, 0.7, 1.5]),
        "stream": dice.random() < 0.6,
        "n": dice.choice([1, 1, 1, 2]),
        "top_p": dice.choice([1, 0.8]),
    }
    if dice.random() < 0.3:
        return "/v1/completions", body | {"prompt": "word " * dice.randint(1, 60)}
    turns = [{"role": "user", "content": "数到 " * dice.randint(1, 20)}]
    more = dice.choice([{}, {"logprobs": True}, {"enable_thinking": True}, {"stop": ["a", "的"]}])
    return "/v1/chat/completions", body | {"messages": turns} | more


async def load(server: LiveServer, num_calls: int, num_clients: int) -> list[str]:
    dice = random.Random(0)
    calls = iter([random.Random(dice.random()) for _ in range(num_calls)])
    found: list[str] = []

    async def client_loop() -> None:
        async with httpx.AsyncClient(base_url=server.url) as client:
            for own_dice in calls:
                leaves = own_dice.random() < 1 / 3
                found.append(await one_call(client, own_dice, leaves))

    await asyncio.gather(*(client_loop() for _ in range(num_clients)))
    return found


def wait_until_idle(server: LiveServer) -> None:
    thread = server.service.models["tiny"].thread
    deadline = time.monotonic() + 20
    while thread._open or thread.engine.has_work:
        assert time.monotonic() < deadline, f"{len(thread._open)} generations never ended"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("num_calls", "num_clients"), [(200, 16), pytest.param(1000, 32, marks=pytest.mark.slow)]
)
def test_mixed_load(serve: Serve, tokenizer: Tokenizer, num_calls: int, num_clients: int) -> None:
    engine = random_engine(tokenizer, max_batch=8)
    server = serve(ServerSettings(port=0), tiny=engine)
    process = psutil.Process()
    # What the first calls allocate stays; what every call would leave behind shows in the rest.
    found = asyncio.run(load(server, num_calls // 4, num_clients))
    resident = process.memory_info().rss
    found += asyncio.run(load(server, num_calls - num_calls // 4, num_clients))
    assert process.memory_info().rss - resident < 30 * MB
    assert len(found) == num_calls
    assert set(found) == {"whole", "left"}
    assert found.count("left") > num_calls / 5
    wait_until_idle(server)
    assert engine.stats.free_slots == 8
    # The freed slots are whole: the same question has the same answer.
    ask = {"model": "tiny", "prompt": "word", "temperature": 0, "max_tokens": 8}
    answers = {
        httpx.post(f"{server.url}/v1/completions", json=ask).json()["choices"][0]["text"]
        for _ in range(3)
    }
    assert len(answers) == 1


def test_beyond_its_queue_the_server_says_429(serve: Serve) -> None:
    engine = ScriptedEngine("x" * 1000, step_s=0.003, max_batch=2)
    server = serve(ServerSettings(port=0, max_waiting=3), tiny=engine)
    body = {"model": "tiny", "prompt": ["a"] * 5}

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            first = asyncio.create_task(client.post("/v1/completions", json=body))
            while len(engine.requests) < 5:
                await asyncio.sleep(0.01)
            second = await client.post("/v1/completions", json=body | {"prompt": "b"})
            return [second, await first]

    refused, answered = asyncio.run(ask())
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    assert "5 generations run or wait" in refused.json()["error"]["message"]
    assert answered.status_code == 200
    assert len(engine.requests) == 5


def test_what_can_never_fit_the_queue_is_no_429(serve: Serve) -> None:
    server = serve(ServerSettings(port=0, max_waiting=3), tiny=ScriptedEngine("x", max_batch=2))
    body = {"model": "tiny", "prompt": ["a"] * 3, "n": 2}
    response = httpx.post(f"{server.url}/v1/completions", json=body)
    assert response.status_code == 400
    assert "6 generations are asked for at once, 5" in response.json()["error"]["message"]
    assert httpx.post(f"{server.url}/v1/completions", json=body | {"n": 1}).status_code == 200


def test_beyond_its_calls_the_server_says_429(serve: Serve) -> None:
    server = serve(
        ServerSettings(port=0, max_calls=1), tiny=ScriptedEngine("x" * 90_000, step_s=0.002)
    )
    ask = {"model": "tiny", "prompt": "a", "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=ask) as response:
        lines = response.iter_lines()
        next(lines)
        assert httpx.get(f"{server.url}/v1/models").status_code == 429
        assert httpx.get(f"{server.url}/health").status_code == 200
    wait_until_idle(server)

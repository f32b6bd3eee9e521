"""Libraries that people reach models with, beside the official client (extra `clients`)."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from live_servers import LiveServer, ScriptedEngine, Serve

from minimind.data.tokenizer import Tokenizer

CALL = '<tool_call>\n{"name": "weather", "arguments": {"town": "Tarn"}}\n</tool_call>'
NEEDED = "needs the extra `clients`"


class Turns(ScriptedEngine):
    """Says the next of its texts at each request."""

    def __init__(self, *texts: str) -> None:
        super().__init__()
        self._texts = list(texts)
        # Some clients hold every tool to its schema; the texts are what they are.
        self.grammars = SimpleNamespace(compile=lambda text: None)

    def submit(self, request: Any) -> int:
        self.text = self._texts.pop(0)
        return super().submit(request)


Start = Callable[..., tuple[str, Turns]]


@pytest.fixture
def start(serve: Serve) -> Start:
    def begin(*texts: str) -> tuple[str, Turns]:
        engine = Turns(*texts)
        return f"{serve(tiny=engine).url}/v1", engine

    return begin


def weather(town: str) -> str:
    """The weather of a town."""
    return f"sunny in {town}"


@pytest.mark.parametrize("responses", [False, True])
def test_langchain(start: Start, responses: bool) -> None:
    library = pytest.importorskip("langchain_openai", reason=NEEDED)
    url, _ = start("hello there", "hello there", CALL, CALL)
    options = {"base_url": url, "api_key": "x", "model": "tiny", "max_retries": 0}
    model = library.ChatOpenAI(**options, use_responses_api=responses)
    assert model.invoke("hi").text == "hello there"
    assert "".join(chunk.text for chunk in model.stream("hi")) == "hello there"
    with_tools = model.bind_tools([weather])
    (call,) = with_tools.invoke("weather?").tool_calls
    assert (call["name"], call["args"]) == ("weather", {"town": "Tarn"})
    chunks = list(with_tools.stream("weather?"))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert whole.tool_calls[0]["args"] == {"town": "Tarn"}


def test_langchain_texts_and_embeddings(start: Start, tiny: LiveServer) -> None:
    library = pytest.importorskip("langchain_openai", reason=NEEDED)
    url, _ = start("more")
    options: dict[str, Any] = {"api_key": "x", "model": "tiny", "max_retries": 0}
    assert library.OpenAI(base_url=url, **options).invoke("some") == "more"
    # Its token counts would be another model's.
    options["check_embedding_ctx_length"] = False
    embeddings = library.OpenAIEmbeddings(base_url=f"{tiny.url}/v1", **options)
    one, two = embeddings.embed_documents(["a", "b"])
    assert one == pytest.approx(embeddings.embed_query("a"), abs=1e-6)
    assert one != two


@pytest.mark.parametrize("kind", ["OpenAIChatCompletionsModel", "OpenAIResponsesModel"])
def test_openai_agents(start: Start, tokenizer: Tokenizer, kind: str) -> None:
    library = pytest.importorskip("agents", reason=NEEDED)
    import openai

    library.set_tracing_disabled(True)
    url, engine = start(CALL, "It is sunny.", CALL, "It is sunny again.")

    async def run() -> tuple[str, str]:
        # One client for one event loop.
        client = openai.AsyncOpenAI(base_url=url, api_key="x", max_retries=0)
        model = getattr(library, kind)(model="tiny", openai_client=client)
        tools = [library.function_tool(weather)]
        agent = library.Agent(name="a", instructions="Be good.", model=model, tools=tools)
        whole = await library.Runner.run(agent, "weather?")
        streamed = library.Runner.run_streamed(agent, "weather?")
        async for _ in streamed.stream_events():
            pass
        return whole.final_output, streamed.final_output

    assert asyncio.run(run()) == ("It is sunny.", "It is sunny again.")
    prompt = tokenizer.decode(engine.requests[-1].prompt_ids)
    assert prompt.startswith("system\nBe good.")
    assert "<tool_response>\nsunny in Tarn\n</tool_response>" in prompt


@pytest.mark.parametrize("kind", ["OpenAIChatModel", "OpenAIResponsesModel"])
def test_pydantic_ai(start: Start, tokenizer: Tokenizer, kind: str) -> None:
    library = pytest.importorskip("pydantic_ai", reason=NEEDED)
    from pydantic_ai.models import openai as models  # type: ignore[import-not-found]
    from pydantic_ai.providers.openai import OpenAIProvider  # type: ignore[import-not-found]

    url, engine = start(CALL, "It is sunny.")
    model = getattr(models, kind)("tiny", provider=OpenAIProvider(base_url=url, api_key="x"))
    agent = library.Agent(model, instructions="Be good.", tools=[weather])
    assert agent.run_sync("weather?").output == "It is sunny."
    prompt = tokenizer.decode(engine.requests[-1].prompt_ids)
    assert "<tool_response>\nsunny in Tarn\n</tool_response>" in prompt


@pytest.mark.parametrize("flags", [(), ("--no-stream",)])
def test_llm(start: Start, tmp_path: Path, flags: tuple[str, ...]) -> None:
    pytest.importorskip("llm", reason=NEEDED)
    url, engine = start("hello")
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: tiny\n  model_name: tiny\n  api_base: {url}\n"
    )
    command = [sys.executable, "-m", "llm", "-m", "tiny", *flags, "-o", "temperature", "0.5", "hi"]
    environment = os.environ | {"LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "x"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "hello"
    assert engine.requests[0].params.temperature == 0.5

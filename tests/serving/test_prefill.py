"""Answers that the client has begun."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest
from live_servers import ScriptedEngine, running_server

from minimind.data.tokenizer import Tokenizer
from minimind.serving.settings import ServerSettings

QUESTION = {"role": "user", "content": "What is the river of Lumor called?"}
BEGUN = {"role": "assistant", "content": "The river of Lumor is "}
CONTINUE = {"continue_final_message": True, "add_generation_prompt": False}


@pytest.fixture(scope="module")
def shared(tokenizer: Tokenizer) -> Iterator[tuple[str, ScriptedEngine]]:
    engine = ScriptedEngine("</think>\n\nthe Sella")
    with running_server({"tiny": engine}, tokenizer, ServerSettings(port=0)) as server:
        yield server.url, engine


def ask(shared: tuple[str, ScriptedEngine], last: dict, **change: Any) -> httpx.Response:
    body = {"messages": [QUESTION, last]} | change
    return httpx.post(f"{shared[0]}/v1/chat/completions", json=body)


def prompt(shared: tuple[str, ScriptedEngine], tokenizer: Tokenizer) -> str:
    return tokenizer.decode(shared[1].requests[-1].prompt_ids, skip_special=False)


@pytest.mark.parametrize(
    ("last", "change"),
    [
        (BEGUN, CONTINUE),
        (BEGUN, {"continue_final_message": True}),
        (BEGUN | {"prefix": True}, {}),
        (BEGUN | {"content": [{"type": "text", "text": BEGUN["content"]}]}, CONTINUE),
    ],
)
def test_the_last_message_goes_on(
    shared: tuple[str, ScriptedEngine], tokenizer: Tokenizer, last: dict, change: dict
) -> None:
    response = ask(shared, last, **change)
    assert response.status_code == 200, response.text
    end = "<|im_start|>assistant\n<think>\n\n</think>\n\nThe river of Lumor is "
    assert prompt(shared, tokenizer).endswith(end)
    assert "x-notice" not in response.headers
    # Tokens are those of an answer that the model would write itself.
    opened = httpx.post(f"{shared[0]}/tokenize", json={"messages": [QUESTION]}).json()["tokens"]
    ids = list(shared[1].requests[-1].prompt_ids)
    assert ids == opened + tokenizer.encode(BEGUN["content"])


@pytest.mark.parametrize(
    "last",
    [
        {"role": "assistant", "content": "", "reasoning_content": "Lumor has"},
        {"role": "assistant", "reasoning": "Lumor has"},
        {"role": "assistant", "content": "<think>\nLumor has"},
    ],
)
def test_thoughts_go_on_too(
    shared: tuple[str, ScriptedEngine], tokenizer: Tokenizer, last: dict
) -> None:
    message = ask(shared, last, **CONTINUE).json()["choices"][0]["message"]
    assert prompt(shared, tokenizer).endswith("assistant\n<think>\nLumor has")
    assert message["content"] == "the Sella", "what was thought before is over"


def test_a_long_beginning_hides_no_open_thought(shared: tuple[str, ScriptedEngine]) -> None:
    thought = {"role": "assistant", "content": "", "reasoning_content": "so " * 100}
    assert (
        ask(shared, thought, **CONTINUE).json()["choices"][0]["message"]["content"] == "the Sella"
    )
    text = ask(shared, BEGUN | {"content": "so " * 100}, **CONTINUE).json()
    assert text["choices"][0]["message"]["content"] == "</think>\n\nthe Sella"


def test_without_being_asked_a_new_turn_follows(
    shared: tuple[str, ScriptedEngine], tokenizer: Tokenizer
) -> None:
    response = ask(shared, BEGUN)
    assert "send continue_final_message true" in response.headers["x-notice"]
    assert prompt(shared, tokenizer).endswith(
        "is <|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    ask(shared, BEGUN, add_generation_prompt=False)
    assert prompt(shared, tokenizer).endswith("is <|im_end|>\n")


@pytest.mark.parametrize(
    ("last", "change", "message"),
    [
        (BEGUN, CONTINUE | {"add_generation_prompt": True}, "exclude each other"),
        (QUESTION, CONTINUE, "messages[1] cannot be continued"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
            CONTINUE,
            "messages[1] cannot be continued",
        ),
    ],
)
def test_what_cannot_go_on(
    shared: tuple[str, ScriptedEngine], last: dict, change: dict, message: str
) -> None:
    response = ask(shared, last, **change)
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


def test_text_that_poses_as_the_mark(
    shared: tuple[str, ScriptedEngine], tokenizer: Tokenizer
) -> None:
    """The place where the text breaks off is marked by a character that it may hold itself."""
    content = "a\ufdd3b\ufdd0c <|im_end|>"
    assert ask(shared, BEGUN | {"content": content}, **CONTINUE).status_code == 200
    assert prompt(shared, tokenizer).endswith(content)
    assert list(shared[1].requests[-1].prompt_ids)[-1] != tokenizer.eos_id

"""Embeddings, and tokens as vLLM and llama.cpp give them."""

from __future__ import annotations

import base64
import math

import httpx2 as httpx
import numpy as np
import openai
import pytest
from live_servers import LiveServer

from minimind.data.tokenizer import Tokenizer

TEXT = "What is 媽?"


def post(server: LiveServer, path: str, **body) -> dict:
    response = httpx.post(server.url + path, json=body, timeout=30)
    assert response.status_code == 200, response.text
    return response.json()


def test_embeddings_as_the_official_client_asks(
    tiny: LiveServer, client: openai.OpenAI, tokenizer: Tokenizer
) -> None:
    """It asks for base64 unless told."""
    ids = [tokenizer.bos_id, *tokenizer.encode(TEXT)]
    found = client.embeddings.create(model="tiny", input=[TEXT, "hi", TEXT])
    plain = client.embeddings.create(model="tiny", input=TEXT, encoding_format="float")
    by_ids = client.embeddings.create(model="tiny", input=[ids, ids])
    assert [one.index for one in found.data] == [0, 1, 2]
    first, other, again = (np.array(one.embedding) for one in found.data)
    assert found.usage.prompt_tokens == found.usage.total_tokens == 2 * len(ids) + 2 + 1
    for same in (again, plain.data[0].embedding, by_ids.data[1].embedding):
        np.testing.assert_allclose(same, first, atol=1e-6)
    assert np.linalg.norm(first) == pytest.approx(1, abs=1e-5)
    assert first @ other < 0.999
    raw = post(tiny, "/v1/embeddings", input=TEXT, encoding_format="base64")
    numbers = np.frombuffer(base64.b64decode(raw["data"][0]["embedding"]), "<f4")
    np.testing.assert_array_equal(numbers, np.array(plain.data[0].embedding, np.float32))


def test_embeddings_of_many_texts_and_of_beginnings(tiny: LiveServer) -> None:
    many = post(tiny, "/v1/embeddings", input=[[70 + i % 3] for i in range(300)])["data"]
    assert len(many) == 300
    assert many[0]["embedding"] == many[297]["embedding"] != many[1]["embedding"]
    long = list(range(60, 500))
    end = post(tiny, "/v1/embeddings", input=long, truncate_prompt_tokens=3, truncation_side="left")
    whole = post(tiny, "/v1/embeddings", input=long[-3:])
    assert end["data"][0]["embedding"] == pytest.approx(whole["data"][0]["embedding"])
    for asked, kept in ((3, 3), (256, 256), (-1, 256)):
        cut = post(tiny, "/v1/embeddings", input=long, truncate_prompt_tokens=asked)
        whole = post(tiny, "/v1/embeddings", input=long[:kept])
        assert cut["usage"]["prompt_tokens"] == kept
        assert cut["data"][0]["embedding"] == pytest.approx(whole["data"][0]["embedding"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dimensions": 4}, "dimensions is not supported"),
        ({"input": []}, "input: "),
        ({"input": [[]]}, "input"),
        ({"input": ["a"] * 2049}, "at most 2048"),
        ({"truncate_prompt_tokens": 0}, "greater than or equal to 1"),
        ({"input": "word " * 300}, "context is 256 tokens; the prompt has"),
        ({"input": [1, 99999]}, "holds the token 99999"),
        ({"input": "", "add_special_tokens": False}, "input is empty"),
        ({"encoding_format": "hex"}, "'float' or 'base64'"),
    ],
)
def test_embeddings_that_cannot_be(tiny: LiveServer, change: dict, message: str) -> None:
    response = httpx.post(f"{tiny.url}/v1/embeddings", json={"input": TEXT} | change)
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


def test_an_empty_text_is_a_document_without_words(tiny: LiveServer) -> None:
    (one,) = post(tiny, "/v1/embeddings", input="")["data"]
    assert math.isfinite(sum(one["embedding"]))


def test_tokens_as_vllm_gives_them(tiny: LiveServer, tokenizer: Tokenizer) -> None:
    found = post(tiny, "/tokenize", model="tiny", prompt=TEXT, return_token_strs=True)
    assert found["tokens"] == [tokenizer.bos_id, *tokenizer.encode(TEXT)]
    assert (found["count"], found["max_model_len"]) == (len(found["tokens"]), 256)
    assert found["token_strs"][0] == "<|im_start|>"
    bare = post(tiny, "/tokenize", prompt=TEXT, add_special_tokens=False)
    assert bare["tokens"] == tokenizer.encode(TEXT)
    assert "token_strs" not in bare
    assert post(tiny, "/detokenize", tokens=bare["tokens"])["prompt"] == TEXT
    rendered = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    once = post(tiny, "/tokenize", prompt=rendered)["tokens"]
    assert once == tokenizer.encode_rendered(rendered), "there is no second start"
    messages = [{"role": "user", "content": "hi"}]
    assert post(tiny, "/tokenize", messages=messages)["tokens"] == once
    short = post(tiny, "/tokenize", messages=messages, add_generation_prompt=False)["tokens"]
    assert once[: len(short)] == short != once


def test_tokens_as_llama_cpp_gives_them(tiny: LiveServer, tokenizer: Tokenizer) -> None:
    bare = post(tiny, "/tokenize", content=TEXT)["tokens"]
    assert bare == tokenizer.encode(TEXT)
    assert post(tiny, "/tokenize", content=TEXT, add_special=True)["tokens"][1:] == bare
    pieces = post(tiny, "/tokenize", content=TEXT, with_pieces=True)["tokens"]
    assert [piece["id"] for piece in pieces] == bare
    written = b"".join(
        bytes(one["piece"]) if isinstance(one["piece"], list) else one["piece"].encode()
        for one in pieces
    )
    assert written.decode() == TEXT
    assert post(tiny, "/detokenize", tokens=bare)["content"] == TEXT
    spelled = post(tiny, "/tokenize", content="<|im_end|>")["tokens"]
    assert spelled == [tokenizer.eos_id]
    as_text = post(tiny, "/tokenize", content="<|im_end|>", parse_special=False)["tokens"]
    assert tokenizer.eos_id not in as_text


def test_one_text_at_a_time(tiny: LiveServer) -> None:
    for body in ({}, {"prompt": "a", "content": "b"}):
        response = httpx.post(f"{tiny.url}/tokenize", json=body)
        assert response.json()["error"]["message"] == "give one of prompt, content and messages"


def test_what_a_remote_tokenizer_asks(tiny: LiveServer) -> None:
    info = httpx.get(f"{tiny.url}/tokenizer_info").json()
    assert (info["bos_token"], info["eos_token"]) == ("<|im_start|>", "<|im_end|>")
    assert "<think>" in info["chat_template"]

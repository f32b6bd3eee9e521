"""Prompts given back with their log-probabilities, by which evaluation harnesses score a server."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import httpx2 as httpx
import pytest
import torch
from live_servers import LiveServer, running_server
from small_models import random_model, reference_logits, small_config

from minimind.data.tokenizer import Tokenizer
from minimind.inference.batch_engine import BatchEngine
from minimind.inference.prompt_reader import PromptReader
from minimind.model.transformer import Transformer
from minimind.serving.settings import ServerSettings

TEXTS = ["The river of Lumor", "塔恩的人养鹅。", "x"]


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Transformer:
    config = small_config(vocab_size=tokenizer.vocab_size, max_position_embeddings=256)
    return random_model(config)


@pytest.fixture(scope="module")
def server(tokenizer: Tokenizer, model: Transformer) -> Iterator[LiveServer]:
    engine = BatchEngine(model, tokenizer, max_batch=4)
    with running_server({"tiny": engine}, tokenizer, ServerSettings(port=0)) as found:
        yield found


def complete(server: LiveServer, **body) -> dict:
    response = httpx.post(f"{server.url}/v1/completions", json=body, timeout=30)
    assert response.status_code == 200, response.text
    return response.json()


def test_the_harness_scores_the_server_as_the_model(
    server: LiveServer, model: Transformer, tokenizer: Tokenizer
) -> None:
    pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness (extra `eval`)")
    pytest.importorskip("tenacity", reason="needs lm-evaluation-harness's extra `api`")
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    from minimind.evaluation.tasks import HarnessModel

    own = HarnessModel(model, tokenizer)
    url = f"{server.url}/v1/completions"
    # "auto" finds that the server's own tokenizer can be asked.
    api = LocalCompletionsAPI(base_url=url, model="tiny", max_length=256, batch_size=2)
    assert api.tokenizer_backend == "remote"
    assert api.prefix_token_id == own.prefix_token_id
    assert api.tok_encode("a <|im_end|>") == tokenizer.encode_rendered("a <|im_end|>")
    likeliest = complete(server, prompt=TEXTS[0], max_tokens=1, temperature=0, logprobs=1)
    (best,) = likeliest["choices"][0]["logprobs"]["top_logprobs"][0]
    pairs = [(TEXTS[0], best), (TEXTS[0], " is"), (TEXTS[1], "鹅"), (TEXTS[2], TEXTS[1])]
    requests = [(pair, own.tok_encode(pair[0]), tokenizer.encode(pair[1])) for pair in pairs]
    expected = own._loglikelihood_tokens(requests, disable_tqdm=True)
    found = api._loglikelihood_tokens(requests, disable_tqdm=True)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert expected[0][1], "one continuation is the likeliest"
    for (one, _), (other, _) in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-3)


def test_what_the_end_of_the_text_cost_counts_as_a_token(
    server: LiveServer, tokenizer: Tokenizer
) -> None:
    """Whoever takes off what was made beyond the prompt takes off one token, whichever it is."""
    prompt = [tokenizer.bos_id, 70, 71]
    body = {"prompt": prompt, "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0}
    free = complete(server, **body)["choices"][0]
    (made,) = complete(server, prompt=prompt, max_tokens=1, temperature=0, logprobs=0)["choices"][
        0
    ]["logprobs"]["tokens"]
    stops = [id for id in range(tokenizer.vocab_size) if _name(tokenizer, id) == made]
    stopped = complete(server, **body, stop_token_ids=stops)
    (choice,) = stopped["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["text"] == tokenizer.decode(prompt)
    for logprobs in (free["logprobs"], choice["logprobs"]):
        assert len(logprobs["tokens"]) == 4
        assert logprobs["tokens"][-1] == made


@pytest.mark.parametrize("max_tokens", [0, 3])
@pytest.mark.parametrize("stream", [False, True])
def test_echoes_of_several_prompts(
    server: LiveServer, tokenizer: Tokenizer, max_tokens: int, stream: bool
) -> None:
    body = {"prompt": TEXTS, "n": 2, "max_tokens": max_tokens, "temperature": 0, "logprobs": 2}
    plain = complete(server, **body)["choices"]
    echoed = _choices(server, stream, **body, echo=True)
    assert len(echoed) == 6
    for index, (text, tokens, offsets) in enumerate(echoed):
        prompt = TEXTS[index // 2]
        assert text == prompt + plain[index]["text"]
        ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
        assert tokens[: len(ids)] == [_name(tokenizer, id) for id in ids]
        assert tokens[len(ids) :] == plain[index]["logprobs"]["tokens"]
        assert offsets[:2] == [0, 0], "what the document begins with is no part of the text"
        assert offsets == sorted(offsets)


def _name(tokenizer: Tokenizer, id: int) -> str:
    raw = tokenizer.token_bytes([id], skip_special=False)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _choices(server: LiveServer, stream: bool, **body) -> list[tuple[str, list, list]]:
    """Text, tokens and offsets of each choice."""
    if not stream:
        chunks = [complete(server, **body)]
    else:
        url = f"{server.url}/v1/completions"
        events = httpx.post(url, json=body | {"stream": True}, timeout=30).text.split("\n\n")
        chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    found: dict[int, tuple[str, list, list]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            text, tokens, offsets = found.get(choice["index"], ("", [], []))
            logprobs = choice.get("logprobs") or {"tokens": [], "text_offset": []}
            found[choice["index"]] = (
                text + choice["text"],
                tokens + logprobs["tokens"],
                offsets + logprobs["text_offset"],
            )
    return [found[index] for index in sorted(found)]


def test_an_echo_without_logprobs(server: LiveServer, tokenizer: Tokenizer) -> None:
    ids = [tokenizer.bos_id, *tokenizer.encode(TEXTS[0])]
    for prompt in (TEXTS[0], ids):
        (choice,) = complete(server, prompt=prompt, echo=True, max_tokens=0)["choices"]
        assert (choice["text"], choice["logprobs"]) == (TEXTS[0], None)
        assert choice["finish_reason"] == "length"
    (choice,) = complete(server, prompt=ids, echo=True, max_tokens=0, skip_special_tokens=False)[
        "choices"
    ]
    assert choice["text"] == "<|im_start|>" + TEXTS[0]


def test_an_id_that_the_model_has_not(server: LiveServer) -> None:
    body = {"prompt": [1, 9999], "echo": True, "logprobs": 1, "max_tokens": 0}
    response = httpx.post(f"{server.url}/v1/completions", json=body)
    assert response.status_code == 400
    assert "holds the token 9999" in response.json()["error"]["message"]


def test_a_reader_s_numbers_are_the_model_s(model: Transformer, tokenizer: Tokenizer) -> None:
    ids = [tokenizer.bos_id, *tokenizer.encode(TEXTS[1] * 3)]
    reader = PromptReader(model)
    found = reader.logprobs(ids, 3)
    assert [entry.id for entry in found] == ids
    assert math.isnan(found[0].logprob)
    assert found[0].top == ()
    logits = reference_logits(model, ids)
    for entry, row in zip(found[1:], logits.log_softmax(-1), strict=False):
        assert entry.logprob == pytest.approx(row[entry.id].item(), abs=2e-3)
        assert len(entry.top) == 3
        assert entry.top[0][1] == pytest.approx(row.max().item(), abs=2e-3)
    size = model.config.hidden_size
    embedding = torch.tensor(reader.embedding(ids))
    assert embedding.shape == (size,)
    assert embedding.norm().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("problem", [RuntimeError("out of memory"), TypeError("of any kind")])
def test_a_text_that_cannot_be_read_ends_nothing_else(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch, problem: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise problem

    with monkeypatch.context() as patched:
        patched.setattr(PromptReader, "embedding", fail)
        url = f"{server.url}/v1/embeddings"
        response = httpx.post(url, json={"input": "a"}, timeout=30)
        assert response.status_code == 500, response.text
    assert complete(server, prompt=TEXTS[0], max_tokens=2)["choices"]

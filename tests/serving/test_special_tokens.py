"""Special tokens that the prompts of /v1/completions spell."""

from __future__ import annotations

import httpx2 as httpx
import pytest
from live_servers import ScriptedEngine, Serve

from minimind.data.tokenizer import Tokenizer
from minimind.serving.settings import ServerSettings

RENDERED = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("by_default", [False, True])
def test_text_unless_asked(serve: Serve, tokenizer: Tokenizer, by_default: bool) -> None:
    engine = ScriptedEngine("yes")
    server = serve(ServerSettings(port=0, parse_special=by_default), tiny=engine)
    start, text = tokenizer.bos_id, tokenizer.encode(RENDERED)
    tokens = tokenizer.encode_rendered(RENDERED)
    assert tokens[0] == start, "so nothing is put before it"
    plain = tokenizer.encode("hi")
    for prompt, body, expected in (
        (RENDERED, {}, tokens if by_default else [start, *text]),
        (RENDERED, {"parse_special": True}, tokens),
        (RENDERED, {"parse_special": False}, [start, *text]),
        (RENDERED, {"parse_special": True, "add_special_tokens": False}, tokens),
        ("hi", {}, [start, *plain]),
        ("hi", {"parse_special": True}, [start, *plain]),
        ("hi", {"add_special_tokens": False}, plain),
        (tokens, {}, tokens),
    ):
        response = httpx.post(f"{server.url}/v1/completions", json={"prompt": prompt} | body)
        assert response.status_code == 200, response.text
        assert list(engine.requests[-1].prompt_ids) == expected
        is_misread = prompt == RENDERED and not body and not by_default
        notice = response.headers.get("x-notice", "")
        assert ("the prompt spells '<|im_start|>', which was read as text" in notice) == is_misread


def test_special_tokens_of_the_answer(serve: Serve) -> None:
    engine = ScriptedEngine("yes")
    server = serve(tiny=engine)
    for value, skips in ((None, True), (True, True), (False, False)):
        body = {"prompt": "a", "skip_special_tokens": value}
        assert httpx.post(f"{server.url}/v1/completions", json=body).status_code == 200
        assert engine.requests[-1].skips_special is skips

"""Web pages of other origins: which may call the server from a browser."""

from __future__ import annotations

import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx2 as httpx
import pytest
from live_servers import ScriptedEngine, Serve

from minimind.cli.serve import _build_parser
from minimind.errors import ConfigError
from minimind.serving.settings import ServerSettings

CHAT = "/v1/chat/completions"
PAGE, OTHER = "http://localhost:3000", "https://evil.example"
ASK = {"messages": [{"role": "user", "content": "hi"}], "colour": "red"}


def preflight(url: str, origin: str, path: str = CHAT) -> httpx.Response:
    wanted = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
        "Access-Control-Request-Private-Network": "true",
    }
    return httpx.options(url + path, headers=wanted)


def test_none_by_default(serve: Serve) -> None:
    server = serve(tiny=ScriptedEngine("yes"))
    assert preflight(server.url, PAGE).status_code == 405
    answer = httpx.post(server.url + CHAT, json=ASK, headers={"Origin": PAGE})
    assert not any(name.startswith("access-control") for name in answer.headers)


def test_the_origins_given(serve: Serve) -> None:
    """A browser asks without the key whether it may send one."""
    settings = ServerSettings(port=0, cors_origins=(PAGE, "null"), api_keys=("k",))
    server = serve(settings, tiny=ScriptedEngine("yes"))
    for path in (CHAT, "/v1/models", "/v1/responses"):
        asked = preflight(server.url, PAGE, path)
        assert asked.status_code == 200
        assert asked.headers["access-control-allow-origin"] == PAGE
        assert "authorization" in asked.headers["access-control-allow-headers"].lower()
        assert "POST" in asked.headers["access-control-allow-methods"]
        assert asked.headers["access-control-allow-private-network"] == "true"
    refused = preflight(server.url, OTHER)
    assert refused.status_code == 400
    assert "access-control-allow-origin" not in refused.headers
    key = {"authorization": "Bearer k"}
    for headers, status in ((key, 200), ({}, 401)):
        answer = httpx.post(server.url + CHAT, json=ASK, headers=headers | {"Origin": PAGE})
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == PAGE, "refusals are read too"
        assert "x-ignored-fields" in answer.headers["access-control-expose-headers"]
    answer = httpx.post(server.url + CHAT, json=ASK, headers=key | {"Origin": OTHER})
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "origin",
    ["localhost:3000", "http://localhost:3000/", "http://a/b", "", "http://*", "http://a b"],
)
def test_what_is_no_origin(origin: str) -> None:
    with pytest.raises(ConfigError, match="give scheme, host and port alone"):
        ServerSettings(cors_origins=(origin,)).check()


@pytest.mark.parametrize("flag", ["--cors-origin", "--cors_origin"])
def test_the_flag_may_be_repeated(flag: str) -> None:
    parser = _build_parser()
    found = parser.parse_args(["--checkpoint", "x", flag, PAGE, flag, OTHER])
    assert found.cors_origin == [PAGE, OTHER]
    assert parser.parse_args(["--checkpoint", "x"]).cors_origin == []


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
STREAMING_PAGE = """<!doctype html><meta charset="utf-8"><title>Another origin</title>
<h1 id="origin"></h1><p>asks <code id="server"></code>:</p><pre id="answer"></pre>
<script>
const server = new URLSearchParams(location.search).get("server");
document.getElementById("origin").textContent = location.origin;
document.getElementById("server").textContent = server;
(async () => {
  const answer = document.getElementById("answer");
  try {
    const response = await fetch(server + "/v1/chat/completions", {
      method: "POST",
      headers: {"Content-Type": "application/json", "Authorization": "Bearer k"},
      body: JSON.stringify({stream: true, messages: [{role: "user", content: "Which river?"}]}),
    });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let pieces = 0, held = "";
    for (;;) {
      const {value, done} = await reader.read();
      if (done) break;
      held += value;
      const events = held.split("\\n\\n");
      held = events.pop();
      for (const event of events) {
        if (event === "data: [DONE]") continue;
        const text = JSON.parse(event.slice(6)).choices[0].delta.content || "";
        answer.textContent += text;
        pieces += 1;
      }
    }
    document.title = "done after " + pieces + " pieces";
  } catch (error) {
    answer.textContent = String(error);
    document.title = "failed";
  }
})();
</script>"""


@pytest.fixture
def page_origin(tmp_path: Path) -> Iterator[str]:
    """A web server of its own for the page."""
    (tmp_path / "index.html").write_text(STREAMING_PAGE, encoding="utf-8")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    handler = partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}"
        server.shutdown()


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium: apt-get install chromium")
@pytest.mark.parametrize("is_allowed", [True, False])
def test_a_page_of_another_origin_streams(serve: Serve, page_origin: str, is_allowed: bool) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright (extra `dev`)")
    origins = (page_origin,) if is_allowed else (PAGE,)
    settings = ServerSettings(port=0, cors_origins=origins, api_keys=("k",))
    server = serve(settings, tiny=ScriptedEngine("The river is the 塞拉河.", step_s=0.01))
    with playwright.sync_playwright() as driver:
        # A container's root user has no sandbox to start.
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 720, "height": 260})
        page.goto(f"{page_origin}/?server={server.url}")
        page.wait_for_function("document.title != 'Another origin'", timeout=60_000)
        title, answer = page.title(), page.inner_text("#answer")
        if folder := os.environ.get("MINIMIND_SCREENSHOTS"):
            page.screenshot(path=str(Path(folder) / f"cors-{is_allowed}.png"))
        browser.close()
    if is_allowed:
        assert answer == "The river is the 塞拉河."
        assert title.startswith("done after ")
        assert int(title.split()[2]) > 3, "it came in pieces"
    else:
        assert (title, answer) == ("failed", "TypeError: Failed to fetch")

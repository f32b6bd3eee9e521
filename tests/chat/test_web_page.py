"""The web page, run without a browser by Streamlit's own test harness."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from live_servers import ScriptedEngine, Serve

testing = pytest.importorskip("streamlit.testing.v1", reason="needs Streamlit (extra `web`)")

from minimind.chat import server as chat_server  # noqa: E402
from minimind.chat import web_texts  # noqa: E402
from minimind.chat.session import Finished  # noqa: E402
from minimind.inference.answer_parser import Content, Part  # noqa: E402

PAGE = Path(web_texts.__file__).with_name("web_page.py")
TOOLS = [{"name": "weather", "parameters": {"type": "object"}}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"town": "塔恩"}}\n</tool_call>'


@pytest.fixture
def page(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, Any]]:
    """page(name=engine, …) -> the page over a server of these models, and the server."""
    import streamlit as st

    def open_page(**engines: ScriptedEngine) -> tuple[Any, Any]:
        st.cache_data.clear()
        st.cache_resource.clear()
        server = serve(**engines)
        monkeypatch.setenv("MINIMIND_SERVER", server.url)
        return testing.AppTest.from_file(str(PAGE), default_timeout=20).run(), server

    return open_page


def say(app: Any, text: str) -> None:
    app.chat_input[0].set_value(text).run()
    assert not app.exception


def shown(app: Any) -> list[tuple[str, list[str]]]:
    """Each turn's speaker and texts."""
    return [(turn.name, [text.value for text in turn.markdown]) for turn in app.chat_message]


def test_two_turns_with_thinking_apart(page) -> None:
    engine = ScriptedEngine("hm\n</think>\n\nThe **answer**")
    app, _ = page(tiny=engine)
    assert not app.exception
    app.toggle(key="thinking").set_value(True).run()
    say(app, "你好")
    say(app, "more")
    assert shown(app) == [
        ("user", ["你好"]),
        ("assistant", ["hm", "The **answer**"]),
        ("user", ["more"]),
        ("assistant", ["hm", "The **answer**"]),
    ]
    assert [turn.expander[0].label for turn in app.chat_message if turn.expander] == [
        "Thinking"
    ] * 2
    assert any("tokens/s" in caption.value for caption in app.caption)
    assert len(engine.requests[1].prompt_ids) > len(engine.requests[0].prompt_ids)


def test_no_speed_is_shown_where_the_server_counts_no_tokens(
    page, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(stream: Any) -> Iterator[Part | Finished]:
        for chunk in stream:
            chunk.usage = None
            yield from (Content(choice.delta.content or "") for choice in chunk.choices)
        yield Finished("length", None)

    monkeypatch.setattr(chat_server, "_read", read)
    app, _ = page(tiny=ScriptedEngine("yes"))
    say(app, "hi")
    captions = [caption.value for caption in app.caption]
    assert web_texts.TEXTS["cut"][0] in captions
    assert not any("tokens/s" in caption for caption in captions)


def test_a_model_that_never_learnt_to_chat_says_so(page) -> None:
    app, server = page(taught=ScriptedEngine("yes"), text=ScriptedEngine("on and on"))
    untaught = dataclasses.replace(server.service.models["text"], notice="trained on text")
    server.service.models["text"] = untaught
    assert not app.warning
    app.selectbox(key="model").set_value("text").run()
    assert [note.value for note in app.warning] == [web_texts.TEXTS["never_taught"][0]]
    say(app, "hi")
    assert not app.warning


def test_options_reach_the_model_that_is_chosen(page) -> None:
    one, two = ScriptedEngine("first"), ScriptedEngine("second")
    app, _ = page(one=one, two=two)
    app.selectbox(key="model").set_value("two").run()
    app.sidebar.slider[0].set_value(0.0).run()
    say(app, "hi")
    assert shown(app)[-1] == ("assistant", ["second"])
    assert not one.requests
    assert two.requests[0].params.temperature == 0.0


def test_conversations_are_kept_side_by_side(page) -> None:
    app, _ = page(tiny=ScriptedEngine("yes"))
    say(app, "the first")
    app.sidebar.button[0].click().run()
    assert shown(app) == []
    say(app, "the second")
    assert shown(app)[0] == ("user", ["the second"])
    app.button(key="conversation 0").click().run()
    assert shown(app)[0] == ("user", ["the first"])


def test_tools_are_called_and_answered(page, tokenizer) -> None:
    engine = ScriptedEngine(CALL)
    app, _ = page(tiny=engine)
    app.sidebar.text_area[1].set_value(json.dumps(TOOLS)).run()
    say(app, "weather?")
    assert "weather" in app.chat_message[-1].caption[0].value
    assert json.loads(app.chat_message[-1].code[0].value) == {"town": "塔恩"}
    engine.text = "It is sunny"
    app.text_input[0].set_value("sunny")
    next(button for button in app.button if button.label == "Send the results").click().run()
    assert not app.exception
    assert shown(app)[-1] == ("assistant", ["It is sunny"])
    assert "<tool_response>\nsunny" in tokenizer.decode(engine.requests[-1].prompt_ids)
    app.sidebar.text_area[1].set_value("{").run()
    assert "not a JSON list" in app.sidebar.error[0].value


def test_chinese(page) -> None:
    app, _ = page(tiny=ScriptedEngine("好"))
    app.sidebar.radio[0].set_value("中文").run()
    assert app.chat_input[0].placeholder == "输入消息"
    assert app.selectbox(key="model").label == "模型"
    for key, texts in web_texts.TEXTS.items():
        assert len(texts) == 2, key


def test_errors_are_shown(page, monkeypatch: pytest.MonkeyPatch) -> None:
    app, server = page(tiny=ScriptedEngine("x"))
    server.service.is_loading = True
    say(app, "hi")
    assert "the server is loading" in app.error[0].value
    assert app.session_state.conversations[0].turns == []
    import streamlit as st

    st.cache_data.clear()
    monkeypatch.setenv("MINIMIND_SERVER", "http://127.0.0.1:9")
    app.run()
    assert "cannot be reached" in app.error[0].value

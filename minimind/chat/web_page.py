"""Shows the web page, a chat with a server. `minimind web` runs it with `streamlit run`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from typing import Any

import streamlit as st

from minimind.chat.markdown import without_images
from minimind.chat.server import ServerChat
from minimind.chat.session import ChatOptions, ChatSession, answer_message
from minimind.chat.web_texts import LANGUAGES, TEXTS
from minimind.config.environment import KEY_VARIABLE, SERVER_VARIABLE
from minimind.data.chat_encoding import Message
from minimind.errors import MiniMindError
from minimind.inference.answer_parser import Content, Part, Reasoning, ToolCall

_NAME_CHARS = 24
_FIXED_SEED = 0
_AVATARS = {"user": ":material/person:", "assistant": ":material/neurology:"}
_ICON = (
    '<svg viewBox="0 0 16 16"><rect width="16" height="16" rx="4" fill="#3b5bdb"/>'
    '<path d="M4 12V4.5l4 4 4-4V12" fill="none" stroke="white" stroke-width="2"/></svg>'
)
"""The page's icon. A browser would load a named one from a server of Google's."""
_STYLE = """<style>
.stMainBlockContainer { padding-top: 3.5rem; padding-bottom: 1rem; }
[data-testid="stSidebarHeader"] { height: 3rem; margin-bottom: 0; padding-bottom: 0; }
[data-testid="stSidebarUserContent"] hr { margin: 0.5rem 0; }
[data-testid="stChatMessage"] { padding: 0.75rem 1rem; }
</style>"""
"""Removes the wide margin that Streamlit leaves at the top, for which a phone has no room."""


def main() -> None:
    st.set_page_config(page_title="MiniMind", page_icon=_ICON, layout="centered")
    st.html(_STYLE)
    _choose_language()
    url = os.environ.get(SERVER_VARIABLE, "http://127.0.0.1:8000")
    try:
        models = _list_models(url)
    except MiniMindError as error:
        st.error(without_images(str(error)))
        st.stop()
    session = _choose_conversation(_backend(url, models[0]))
    st.sidebar.divider()
    model = st.sidebar.selectbox(text("model"), models, key="model")
    session.backend = backend = _backend(url, model)
    _choose_options(session)
    tools = _tools()
    _offer_download(session)
    st.header(text("title"), anchor=False)
    if not session.turns:
        st.caption(text("greeting"))
        if backend.notice:
            st.warning(text("never_taught"))
    for turn in session.turns:
        _show_turn(turn)
    calls = session.turns[-1].get("tool_calls") if session.turns else None
    question = st.chat_input(text("ask"))
    if question:
        _answer(session, [{"role": "user", "content": question}], tools)
    elif calls:
        _ask_for_results(session, calls, tools)
    elif session.turns and _wants_another(session):
        last = session.forget_last()
        if last is not None:
            _answer(session, [{"role": "user", "content": last}], tools)


@st.cache_data(ttl=60, show_spinner=False)
def _list_models(url: str) -> list[str]:
    return ServerChat(url, api_key=os.environ.get(KEY_VARIABLE)).models


@st.cache_resource(show_spinner=False)
def _backend(url: str, model: str) -> ServerChat:
    return ServerChat(url, model, os.environ.get(KEY_VARIABLE))


def _choose_language() -> None:
    locale = st.context.locale or ""
    first = LANGUAGES.index("中文") if locale.startswith("zh") else 0
    st.sidebar.radio(
        "Language",
        LANGUAGES,
        index=first,
        horizontal=True,
        label_visibility="collapsed",
        key="language",
    )


def text(key: str) -> str:
    """Gives one of the page's texts in the chosen language."""
    return TEXTS[key][LANGUAGES.index(st.session_state.language)]


def _choose_conversation(backend: ServerChat) -> ChatSession:
    """Lets the user choose one of this browser tab's conversations."""
    state = st.session_state
    if "conversations" not in state:
        state.conversations = [ChatSession(backend)]
        state.chosen = 0
    with st.sidebar:
        if st.button(text("new"), icon=":material/add:", width="stretch"):
            if state.conversations[-1].turns:
                state.conversations.append(ChatSession(backend))
            state.chosen = len(state.conversations) - 1
        for number, session in reversed(list(enumerate(state.conversations))):
            if not session.turns:
                continue
            name = _shorten(session.turns[0]["content"])
            kind = "secondary" if number == state.chosen else "tertiary"
            if st.button(name, key=f"conversation {number}", type=kind, width="stretch"):
                state.chosen = number
                st.rerun()
    return state.conversations[state.chosen]


def _shorten(question: str) -> str:
    """Shortens a question to a button's label, and escapes Markdown, which the label would
    render."""
    words = " ".join(question.split())
    cut = words if len(words) <= _NAME_CHARS else words[: _NAME_CHARS - 1] + "…"
    return re.sub(r"([\\`*_\[\]$:~<>#])", r"\\\1", cut)


def _choose_options(session: ChatSession) -> None:
    """Lets the user set the options of the next answer."""
    with st.sidebar:
        thinking = st.toggle(text("thinking"), key="thinking")
        session.system = st.text_area(
            text("system"), key="system", height=68, placeholder=text("system_hint")
        )
        with st.expander(text("sampling")):
            options = ChatOptions(
                thinking=thinking,
                temperature=st.slider(text("temperature"), 0.0, 2.0, 0.7, 0.05),
                top_p=st.slider(text("top_p"), 0.05, 1.0, 0.9, 0.05),
                top_k=st.slider(text("top_k"), 0, 200, 0),
                min_p=st.slider(text("min_p"), 0.0, 0.5, 0.0, 0.01),
                repetition_penalty=st.slider(text("repetition_penalty"), 0.8, 2.0, 1.0, 0.05),
                max_new_tokens=st.slider(text("max_new_tokens"), 16, 2048, 256, 16),
                seed=_FIXED_SEED if st.checkbox(text("fixed_seed")) else None,
            )
        session.options = options


def _offer_download(session: ChatSession) -> None:
    if session.turns:
        line = json.dumps({"conversations": session.messages}, ensure_ascii=False) + "\n"
        st.sidebar.download_button(
            text("download"), line, "chat.jsonl", icon=":material/download:", width="stretch"
        )


def _tools() -> list[dict[str, Any]]:
    with st.sidebar.expander(text("tools")):
        written = st.text_area(text("tools"), help=text("tools_help"), label_visibility="collapsed")
        if not written.strip():
            return []
        try:
            tools = json.loads(written)
        except ValueError:
            tools = None
        if isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools):
            return [
                tool if "function" in tool else {"type": "function", "function": tool}
                for tool in tools
            ]
        st.error(text("tools_wrong"))
        return []


def _speaker(role: str) -> Any:
    """Gives the chat bubble of a role; tool results stand on the assistant's side."""
    name = "user" if role == "user" else "assistant"
    return st.chat_message(name, avatar=_AVATARS[name])


def _show_turn(turn: Message) -> None:
    role = turn["role"]
    with _speaker(role):
        if thought := turn.get("reasoning_content"):
            with st.expander(text("thought"), icon=":material/lightbulb:"):
                st.markdown(without_images(thought))
        if role == "tool":
            st.code(turn["content"], language=None, wrap_lines=True)
        elif turn["content"]:
            st.markdown(without_images(turn["content"]))
        for call in turn.get("tool_calls", ()):
            _show_call(call["function"]["name"], call["function"]["arguments"])


def _wants_another(session: ChatSession) -> bool:
    """Shows the last answer's speed and a button for another answer; tells whether it was
    pressed."""
    with st.container(horizontal=True, vertical_alignment="center"):
        again = st.button(text("again"), icon=":material/refresh:", type="tertiary")
        if speed := st.session_state.get("speed", {}).get(id(session)):
            st.caption(speed)
    return again


def _show_call(name: str, arguments: str) -> None:
    st.caption(without_images(f"{text('call')} `{name}`"))
    st.code(arguments, language="json", wrap_lines=True)


def _ask_for_results(
    session: ChatSession, calls: Sequence[dict[str, Any]], tools: list[dict[str, Any]]
) -> None:
    with st.form("results"):
        results = [
            st.text_input(
                without_images(f"{text('result')} {call['function']['name']}"), key=call["id"]
            )
            for call in calls
        ]
        if not st.form_submit_button(text("send")):
            return
    turns = [
        {"role": "tool", "tool_call_id": call["id"], "content": result}
        for call, result in zip(calls, results, strict=True)
    ]
    _answer(session, turns, tools)


def _answer(session: ChatSession, turns: list[Message], tools: list[dict[str, Any]]) -> None:
    """Adds the turns to the conversation, and shows the answer as it arrives and keeps it."""
    for turn in turns:
        _show_turn(turn)
    with _speaker("assistant"):
        thinking, saying = st.empty(), st.empty()
        parts: list[Part] = []
        try:
            for part in session.ask(turns, tools):
                parts.append(part)
                _show_progress(parts, thinking, saying)
        except MiniMindError as error:
            st.error(without_images(str(error)))
            return
    done = session.finished
    if done is not None:
        known = []
        if (speed := session.tokens_per_s) is not None:
            known.append(text("speed").format(tokens=done.completion_tokens, speed=speed))
        if done.reason == "length":
            known.append(text("cut"))
        st.session_state.setdefault("speed", {})[id(session)] = ", ".join(known)
    st.rerun()


def _show_progress(parts: Sequence[Part], thinking: Any, saying: Any) -> None:
    message = answer_message(parts)
    match parts[-1]:
        case Reasoning():
            with thinking.expander(text("thought"), expanded=True, icon=":material/lightbulb:"):
                st.markdown(without_images(message["reasoning_content"]))
        case Content():
            saying.markdown(without_images(message["content"]))
        case ToolCall(_, name, arguments):
            _show_call(name, arguments)


if __name__ == "__main__":
    main()

"""Holds conversations of every kind, for tests of templates and encodings."""

from __future__ import annotations

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
CALL = {"name": "f", "arguments": {"town": "塔恩", "n": [1, None]}}
TOOLS = [{"name": "f", "description": "<b> & 'c'", "parameters": {"type": "object"}}]
CHATS = {
    "one question": [USER],
    "system": [{"role": "system", "content": "be brief"}, USER, ANSWER],
    "several turns": [USER, ANSWER, USER, ANSWER],
    "reasoning": [USER, {**ANSWER, "reasoning_content": "hm\n"}],
    "reasoning in the text": [USER, {**ANSWER, "content": "<think>\nhm\n</think>\n\na"}],
    "a later system turn": [USER, ANSWER, {"role": "system", "content": "s"}, USER],
    "tools": [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [CALL, {"function": CALL}]},
        {"role": "tool", "content": "1"},
        {"role": "tool", "content": "2"},
        ANSWER,
    ],
    "arguments as a string": [
        USER,
        {"role": "assistant", "content": "x", "tool_calls": [{**CALL, "arguments": '{"a": 1}'}]},
    ],
    "no content": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}],
}

from __future__ import annotations

import pytest
from chats import ANSWER, CHATS, TOOLS, USER

from minimind.data.chat_template import CHAT_TEMPLATE, render_chat
from minimind.errors import DataError


def test_turns() -> None:
    text = render_chat(CHAT_TEMPLATE, CHATS["system"])
    assert text == (
        "<|im_start|>system\nbe brief<|im_end|>\n"
        "<|im_start|>user\nq<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\na<|im_end|>\n"
    )


def test_tool_turns() -> None:
    text = render_chat(CHAT_TEMPLATE, CHATS["tools"], TOOLS)
    assert text.startswith("<|im_start|>system\n# Tools")
    assert '<tools>\n{"name": "f", "description": "<b> & \'c\'"' in text
    call = '<tool_call>\n{"name": "f", "arguments": {"town": "塔恩", "n": [1, null]}}\n</tool_call>'
    assert f"</think>\n\n{call}\n{call}<|im_end|>\n" in text
    assert (
        "<|im_start|>user\n<tool_response>\n1\n</tool_response>\n"
        "<tool_response>\n2\n</tool_response><|im_end|>\n<|im_start|>assistant"
    ) in text


@pytest.mark.parametrize("thinking", [False, True])
def test_a_prompt_and_its_answer_read_as_the_whole_conversation(thinking: bool) -> None:
    prompt = render_chat(CHAT_TEMPLATE, [USER], None, True, thinking)
    answer = {**ANSWER, "reasoning_content": "hm"} if thinking else ANSWER
    written = "hm\n</think>\n\na" if thinking else "a"
    assert prompt + written + "<|im_end|>\n" == render_chat(CHAT_TEMPLATE, [USER, answer])


def test_reasoning_in_the_text_reads_as_reasoning_apart() -> None:
    apart = [USER, {**ANSWER, "reasoning_content": "hm"}]
    assert render_chat(CHAT_TEMPLATE, CHATS["reasoning in the text"]) == render_chat(
        CHAT_TEMPLATE, apart
    )


def test_generation_blocks_are_transparent() -> None:
    template = "a{% generation %}{{ messages[0].content }}{% endgeneration %}b"
    assert render_chat(template, [USER]) == "aqb"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{", "cannot render"),
        ("{{ raise_exception('not so') }}", "not so"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe|not safely callable"),
    ],
)
def test_templates_that_fail(template: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        render_chat(template, [USER])


def test_an_unknown_role_is_named() -> None:
    with pytest.raises(DataError, match='unknown role "alien"'):
        render_chat(CHAT_TEMPLATE, [{"role": "alien", "content": ""}])

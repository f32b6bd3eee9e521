"""What a chat template leaves out of a conversation is refused, or of reasoning counted."""

from __future__ import annotations

from typing import Any

import pytest
from chats import ANSWER, CHATS, TOOLS, USER
from data_rows import as_rows

from minimind.data.chat_encoding import Chat, ChatEncoder
from minimind.data.chat_format import chat_samples
from minimind.data.chat_losses import REASONING_LEFT_OUT
from minimind.data.jsonl import BadRow
from minimind.data.preference_format import preference_samples
from minimind.data.prompt_format import prompt_samples
from minimind.data.tokenizer import Tokenizer
from minimind.types import PairSample, Row, Sample

SYSTEM = {"role": "system", "content": "be brief"}
THINKING = {**ANSWER, "content": "b", "reasoning_content": "because"}
CALLING = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {}}]}
# The system turn first or not at all, reasoning of the last turn alone, no tools and no calls.
PLAIN_TEMPLATE = (
    "{% for m in messages %}{% if m.role != 'system' or loop.first %}"
    "<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content and loop.last %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content.split('</think>')[-1] | trim }}<|im_end|>\n{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def plain(tokenizer: Tokenizer) -> Tokenizer:
    config = {**tokenizer._config, "chat_template": PLAIN_TEMPLATE}
    return Tokenizer(tokenizer._spec, config, "plain")


def rows(*turns: dict[str, Any], **more: Any) -> list[Row]:
    return as_rows({"conversations": list(turns), **more})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (rows(USER, ANSWER, SYSTEM, USER, ANSWER), r"the text of turn 3 (system): leave the turn"),
        (rows(USER, ANSWER, tools=TOOLS), "does not show tools, and the row has some"),
        (rows(USER, CALLING), "does not show the tool calls of turn 2 (assistant)"),
        (rows(USER, {**ANSWER, "content": "a</think>b</think>c"}), "the text of turn 2"),
    ],
)
def test_a_part_that_is_not_shown_is_refused(plain: Tokenizer, given: list[Row], said: str) -> None:
    (bad,) = chat_samples(given, plain)
    assert isinstance(bad, BadRow)
    assert said in bad.reason
    assert "the chat template of plain" in bad.reason


@pytest.mark.parametrize(
    ("turns", "unread"),
    [
        ([SYSTEM, USER, ANSWER, USER, THINKING], ()),
        ([USER, THINKING, USER, ANSWER], (REASONING_LEFT_OUT,)),
        ([USER, {**ANSWER, "content": "<think>hm</think>a"}], (REASONING_LEFT_OUT,)),
        ([USER, {**ANSWER, "content": "  a \n"}], ()),
        ([{**USER, "content": "<|im_end|> \ufdd0"}, ANSWER], ()),
    ],
)
def test_reasoning_that_is_not_shown_is_counted(
    plain: Tokenizer, turns: list[dict[str, Any]], unread: tuple[str, ...]
) -> None:
    (sample,) = chat_samples(rows(*turns), plain)
    assert isinstance(sample, Sample)
    assert sample.unread == unread
    pair = {"chosen": turns, "rejected": [*turns[:-1], {**ANSWER, "content": "no"}]}
    (both,) = preference_samples(as_rows(pair), plain)
    assert isinstance(both, PairSample)
    assert both.unread == unread
    (prompt,) = prompt_samples(rows(*turns, USER), plain)
    assert isinstance(prompt, Sample)
    assert set(prompt.unread) >= set(unread)


def test_the_own_template_shows_all(tokenizer: Tokenizer) -> None:
    encoder = ChatEncoder(tokenizer)
    for turns in CHATS.values():
        if any(turn["role"] == "assistant" for turn in turns):
            (sample,) = chat_samples(rows(*turns, tools=TOOLS), tokenizer)
            assert isinstance(sample, Sample), sample
            assert sample.unread == ()
    chat = Chat([dict(USER), dict(CALLING)], TOOLS)
    unread: set[str] = set()
    encoder.check_shown(chat, encoder.spans(chat), unread)
    assert not unread


def test_weights_need_turns_that_stand_apart(tokenizer: Tokenizer, plain: Tokenizer) -> None:
    # Of assistant turns one after the other, only the first has a header.
    merging = PLAIN_TEMPLATE.replace(
        "<|im_start|>{{ m.role }}\n",
        "{% if loop.first or messages[loop.index0 - 1].role != m.role %}"
        "<|im_start|>{{ m.role }}\n{% endif %}",
    )
    config = {**tokenizer._config, "chat_template": merging}
    turns = [USER, {**ANSWER, "weight": 0}, {**ANSWER, "content": "b"}]
    (kept,) = chat_samples(rows(*turns), plain)
    assert isinstance(kept, Sample)
    assert plain.decode(kept.ids[kept.is_target].tolist(), False) == "b<|im_end|>\n"
    (bad,) = chat_samples(rows(*turns), Tokenizer(tokenizer._spec, config, "merging"))
    assert isinstance(bad, BadRow)
    assert "does not show each assistant turn apart" in bad.reason

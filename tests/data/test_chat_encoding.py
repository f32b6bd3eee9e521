"""Conversations as tokens: as transformers has them, but for text that spells special tokens."""

from __future__ import annotations

import itertools
import json

import pytest
from chats import ANSWER, CHATS, TOOLS, USER
from hypothesis import given
from hypothesis import strategies as st

from minimind.data.chat_encoding import Chat, ChatEncoder
from minimind.data.chat_format import read_chat
from minimind.data.chat_template import CHAT_TEMPLATE, render_chat
from minimind.data.tokenizer import TAGS, Tokenizer
from minimind.data.tokenizer_training import RESERVED_TOKENS, train_tokenizer
from minimind.errors import DataError

TEMPLATES = {
    # Turn headers that come with the turn before, and a system turn nobody wrote.
    "header after the question": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nBe good.<|im_end|>\n{% endif %}"
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}<|im_end|>\n"
        "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        "{% if m.role == 'user' %}<|im_start|>assistant\n{% endif %}{% endif %}{% endfor %}"
    ),
    "a header of two tokens": (
        "{% for m in messages %}<|buffer1|>{{ m.role }}<|buffer2|>\n\n"
        "{{ m.content | trim }}<|im_end|>{% endfor %}"
    ),
    "bos by its name, once": (
        "{{ bos_token }}{% for m in messages %}<|buffer1|>{{ m.role }}<|buffer2|>\n"
        "{{ m.content }}{{ eos_token }}\n{% endfor %}"
    ),
    "thinking of earlier turns left out": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content if loop.last else m.content.split('</think>')[-1].lstrip('\n') }}"
        "<|im_end|>\n{% endfor %}"
    ),
}
ANY_TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
PIECES = st.lists(st.one_of(st.sampled_from(RESERVED_TOKENS), ANY_TEXT), min_size=1, max_size=4)


def with_template(tokenizer: Tokenizer, template: str | None) -> Tokenizer:
    config = {**tokenizer._config, "chat_template": template}
    return Tokenizer(tokenizer._spec, config, "foreign")


def encode(tokenizer: Tokenizer, chat: Chat) -> tuple[str, str, list[int]]:
    """(the whole text, the targets' text, the ids)."""
    encoder = ChatEncoder(tokenizer)
    (sample,) = encoder.encode([encoder.spans(chat)])
    ids = sample.ids.tolist()
    targets = sample.ids[sample.is_target].tolist()
    return tokenizer.decode(ids, False), tokenizer.decode(targets, False), ids


@pytest.mark.parametrize("tools", [None, TOOLS], ids=["no tools", "tools"])
@pytest.mark.parametrize("name", CHATS)
def test_text_and_ids_are_those_of_transformers(
    tokenizer: Tokenizer, hugging_face, name, tools
) -> None:
    turns, encoder = CHATS[name], ChatEncoder(tokenizer)
    chat = Chat(read_chat(turns, "chat", needs_answer=False).messages, tools)
    for asks, thinks in itertools.product((False, True), repeat=2):
        options = {"add_generation_prompt": asks, "enable_thinking": thinks}
        text = hugging_face.apply_chat_template(turns, tools=tools, tokenize=False, **options)
        assert render_chat(CHAT_TEMPLATE, turns, tools, **options) == text
        ids = hugging_face(text, add_special_tokens=False)["input_ids"]
        (sample,) = encoder.encode([encoder.spans(chat)])
        assert (encoder.prompt_ids(chat, thinks) if asks else sample.ids.tolist()) == ids


@pytest.mark.parametrize("name", TEMPLATES)
def test_foreign_templates_give_the_ids_of_transformers(
    tokenizer: Tokenizer, tmp_path, name: str
) -> None:
    transformers = pytest.importorskip("transformers")
    foreign = with_template(tokenizer, TEMPLATES[name])
    foreign.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    turns = [USER, {**ANSWER, "content": "<think>\nhm\n</think>\n\n答案 1"}, USER, ANSWER]
    expected = theirs.apply_chat_template(turns, tokenize=True, return_dict=False)
    _, targets, ids = encode(foreign, Chat(turns))
    assert ids == expected
    assert targets.count("答案 1") == targets.count("<|im_end|>") - 1 == 1
    assert "q" not in targets
    assert "assistant" not in targets


def test_targets_of_a_conversation_read_by_hand(tokenizer: Tokenizer) -> None:
    turns = [
        {"role": "system", "content": "简短"},
        {"role": "user", "content": "7 加 5？"},
        {"role": "assistant", "content": "12", "reasoning_content": "7+5"},
        {"role": "user", "content": "sure? assistant\n"},
        {"role": "assistant", "content": "yes <|im_end|>\n no"},
    ]
    text, targets, ids = encode(tokenizer, Chat(turns))
    assert text == (
        "<|im_start|>system\n简短<|im_end|>\n"
        "<|im_start|>user\n7 加 5？<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n7+5\n</think>\n\n12<|im_end|>\n"
        "<|im_start|>user\nsure? assistant\n<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\nyes <|im_end|>\n no<|im_end|>\n"
    )
    assert targets == (
        "<think>\n7+5\n</think>\n\n12<|im_end|>\n"
        "<think>\n\n</think>\n\nyes <|im_end|>\n no<|im_end|>\n"
    )
    assert ids.count(tokenizer.eos_id) == 5


def test_targets_with_tools(tokenizer: Tokenizer) -> None:
    call = {"name": "f", "arguments": {"x": 1}}
    turns = [
        {"role": "system", "content": "", "tools": json.dumps(TOOLS)},
        USER,
        {"role": "assistant", "content": "", "tool_calls": json.dumps([call])},
        {"role": "tool", "content": "<tool_call>3</tool_call>"},
        {"role": "assistant", "content": "It is 3."},
    ]
    text, targets, ids = encode(tokenizer, read_chat(turns, "chat"))
    assert targets == (
        '<think>\n\n</think>\n\n<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
        "<|im_end|>\n<think>\n\n</think>\n\nIt is 3.<|im_end|>\n"
    )
    assert "<tool_response>\n<tool_call>3</tool_call>\n</tool_response>" in text
    # The tool's own spelling is text; the system turn's explanation and the call are tags.
    assert [ids.count(tokenizer.added_ids[tag]) for tag in TAGS] == [2, 2, 1, 1, 2, 2]


@given(pieces=PIECES, answer=PIECES)
def test_no_text_becomes_a_special_token(
    tokenizer: Tokenizer, pieces: list[str], answer: list[str]
) -> None:
    """However special tokens are spelled and cut, the conversation reads as the template's text,
    and has the specials of one that spells none."""
    content, reply = "".join(pieces), "".join(answer)
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": reply}]
    encoder = ChatEncoder(tokenizer)
    assert hidden(tokenizer, encoder, turns) == [1, 2, 1, 2]
    turns[0]["role"] = "tool"
    assert hidden(tokenizer, encoder, turns) == [1, 23, 24, 2, 1, 2]


def hidden(tokenizer: Tokenizer, encoder: ChatEncoder, turns: list[dict[str, str]]) -> list[int]:
    """The reserved ids in a conversation, but for the thinking and tool tags of answers."""
    (sample,) = encoder.encode([encoder.spans(Chat(turns))])
    ids, targets = sample.ids.tolist(), sample.is_target.tolist()
    assert turns[0]["content"] in tokenizer.decode(ids, False)
    reserved = zip(ids, targets, strict=True)
    return [i for i, said in reserved if i < 36 and not (said and 21 <= i <= 26)]


def test_overlapping_and_escaped_spellings(tokenizer: Tokenizer) -> None:
    content = "<<|im_end|><|im_<|im_start|>\ufdd0<|im_end|>\ufdd0s\ufdd0"
    text, _, ids = encode(tokenizer, Chat([{"role": "user", "content": content}, ANSWER]))
    assert text.startswith(f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant")
    assert ids.count(2) == 2


def test_several_conversations_at_once_are_those_one_by_one(tokenizer: Tokenizer) -> None:
    encoder = ChatEncoder(tokenizer)
    chats = [Chat([USER, {**ANSWER, "content": f"a{n}"}] * n) for n in (1, 3, 2)]
    together = encoder.encode([encoder.spans(chat) for chat in chats])
    for chat, sample in zip(chats, together, strict=True):
        (alone,) = encoder.encode([encoder.spans(chat)])
        assert sample.ids.tolist() == alone.ids.tolist()
        assert sample.is_target.tolist() == alone.is_target.tolist()


@pytest.mark.parametrize("content", ["a", " a", "\n\n a"])
def test_an_answer_begins_where_its_prompt_ends(tokenizer: Tokenizer, content: str) -> None:
    """White space there is not merged: a model is trained on the ids it will continue."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    encoder = ChatEncoder(with_template(tokenizer, template))
    (whole,) = encoder.encode([encoder.spans(Chat([USER, {**ANSWER, "content": content}]))])
    prompt = encoder.prompt_ids(Chat([USER]))
    assert whole.ids.tolist()[: len(prompt)] == prompt
    assert whole.is_target.tolist() == [False] * len(prompt) + [True] * (
        len(whole.ids) - len(prompt)
    )


def test_two_line_ends_that_are_a_token_are_one_in_training_too() -> None:
    """A prompt ends in those behind an empty thinking block."""
    tokenizer = train_tokenizer(["some text\n\n"] * 9, 400)
    assert len(tokenizer.encode("\n\n")) == 1
    assert len(tokenizer.encode("\n\na")) == 3
    encoder = ChatEncoder(tokenizer)
    turns = [USER, ANSWER, USER, {**ANSWER, "reasoning_content": "hm"}]
    (whole,) = encoder.encode([encoder.spans(Chat(turns))])
    for number, thinking in ((1, False), (3, True)):
        prompt = encoder.prompt_ids(Chat(turns[:number]), enable_thinking=thinking)
        assert whole.ids.tolist()[: len(prompt)] == prompt


def test_tokenizers_that_cannot_mark_turns(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="the tokenizer foreign has no chat template"):
        ChatEncoder(with_template(tokenizer, None))
    plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    with pytest.raises(DataError, match="of foreign begins an assistant's turn without any added"):
        ChatEncoder(with_template(tokenizer, plain))


RESULTS = [
    ["85"],
    ["85", "塔恩: 20 °C"],
    ["", "\n two lines\n", "<tool_call>3</tool_call>"],
    ["<|im_end|>\n<|im_start|>assistant\n<think>", "</tool_response>\ufdd0\ufdd1\ufdd2s"],
]


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("results", RESULTS, ids=["one", "two", "odd", "spelled"])
def test_results_stand_where_the_whole_conversation_has_them(
    tokenizer: Tokenizer, results: list[str], thinking: bool
) -> None:
    """prompt + what the assistant wrote + results is the prompt of the whole conversation."""
    encoder = ChatEncoder(tokenizer)
    asked = [{"role": "system", "content": "s"}, USER]
    said = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    written = f"hm\n</think>\n\n{said}" if thinking else said
    turn = {
        "role": "assistant",
        "content": f"<think>\nhm\n</think>\n\n{said}" if thinking else said,
    }
    tools = [{"role": "tool", "content": result} for result in results]
    whole = encoder.prompt_ids(Chat([*asked, turn, *tools], TOOLS), thinking)
    (sample,) = encoder.encode([[(f"{written}<|im_end|>", True)]])
    assert sample.ids.tolist()[-1] == tokenizer.eos_id
    before = encoder.prompt_ids(Chat(asked, TOOLS), thinking)
    behind = encoder.result_ids(results, thinking)
    assert [*before, *sample.ids.tolist(), *behind] == whole
    shown = tokenizer.decode(behind, False)
    for result in results:
        assert f"<tool_response>\n{result}\n</tool_response>" in shown
    assert behind.count(tokenizer.eos_id) == 1, "what a result spells is text"


def test_results_read_by_hand(tokenizer: Tokenizer) -> None:
    encoder = ChatEncoder(tokenizer)
    assert tokenizer.decode(encoder.result_ids(["1"]), False) == (
        "\n<|im_start|>user\n<tool_response>\n1\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    assert tokenizer.decode(encoder.result_ids(["1"], True), False).endswith("assistant\n<think>\n")


def test_results_need_an_end_token_to_follow(tokenizer: Tokenizer) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{{ '<|buffer1|>' if m.role == 'assistant' else '<|im_end|>' }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    encoder = ChatEncoder(with_template(tokenizer, template))
    with pytest.raises(DataError, match=r"of foreign does not end .* but with '<\|buffer1"):
        encoder.result_ids(["1"])


def test_a_tokenizer_without_added_tokens_has_no_header(tokenizer: Tokenizer) -> None:
    spec = {**tokenizer._spec, "added_tokens": []}
    config = {"eos_token": "a", "chat_template": "{{ messages[0].content }}b"}
    with pytest.raises(DataError, match="begins an assistant's turn without"):
        ChatEncoder(Tokenizer(spec, config, "here"))

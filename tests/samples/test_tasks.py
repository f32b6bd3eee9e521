"""The sample's tasks: answers that are right, held-out sums never in training, questions for tools
that no conversation asks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from minimind.data.chat_encoding import ChatEncoder
from minimind.data.chat_format import read_chat
from minimind.data.prompt_format import PROMPT
from minimind.data.token_cache import build_token_cache
from minimind.data.tokenizer import Tokenizer
from minimind.errors import ConfigError
from minimind.samples.files import CHAT_DATA, SampleData, sample_data_path, write_sample
from minimind.samples.sources import SAMPLE_DATA, find_data_file
from minimind.samples.tasks import (
    COUNT_WORDINGS,
    PROMPT_DATA,
    SORT_WORDINGS,
    SUM_WORDINGS_EN,
    SUM_WORDINGS_ZH,
    SUMS_DATA,
    TOOLS_DATA,
)
from minimind.samples.text import SUMS
from minimind.samples.tool_use import CALLED_ONE_IN, REQUEST_EN, REQUEST_ZH
from minimind.samples.tools import TOOL_SCHEMAS, TOOLS
from minimind.samples.world import HELD_OUT_COUNTS, HELD_OUT_SUMS, PEOPLE, THINGS

TASKS = {data.name: data for data in (PROMPT_DATA, SUMS_DATA, TOOLS_DATA)}
SPLITS = ("train", "val")
REQUESTS = (REQUEST_EN, REQUEST_ZH)
Rows = dict[tuple[str, str], list[dict[str, Any]]]


def read_rows(path: Path, split: Any, data: SampleData) -> list[dict[str, Any]]:
    write_sample(path, split, data)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    path = tmp_path_factory.mktemp("sample") / "rows.jsonl"
    return {
        (name, split): read_rows(path, split, data)
        for name, data in {**TASKS, "chat": CHAT_DATA}.items()
        for split in SPLITS
    }


def question_of(row: dict[str, Any]) -> str:
    return next(turn["content"] for turn in row["conversations"] if turn["role"] == "user")


def numbers_in(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def kind_of(question: str) -> str:
    return re.sub(r"\d+", "#", question)


def kinds(*wordings: str) -> set[str]:
    return {re.sub(r"\{.\}", "#", wording) for wording in wordings}


@pytest.mark.parametrize("name", ["prompts", "sums"])
def test_the_right_answers_are_right(rows: Rows, name: str) -> None:
    found = set()
    for row in rows[name, "train"] + rows[name, "val"]:
        question, gt = question_of(row), row["gt"]
        kind, numbers = kind_of(question), numbers_in(question)
        found.add(kind)
        if kind in kinds(*SUM_WORDINGS_EN, *SUM_WORDINGS_ZH):
            assert type(gt) is int
            assert gt == numbers[0] + numbers[1]
            continue
        between, end = (", ", ".") if question.isascii() else ("，", "。")
        if kind in kinds(*COUNT_WORDINGS):
            right = list(range(numbers[0], numbers[1] + 1))
        else:
            assert kind in kinds(*SORT_WORDINGS)
            right = sorted(numbers)
        assert gt == between.join(map(str, right)) + end
    wanted = kinds(*SUM_WORDINGS_EN, *SUM_WORDINGS_ZH)
    assert found == (wanted | kinds(*COUNT_WORDINGS, *SORT_WORDINGS) if name[0] == "p" else wanted)


@pytest.mark.parametrize("name", ["prompts", "sums"])
def test_what_is_held_out_is_asked_in_validation_alone(rows: Rows, name: str) -> None:
    of_sums = kinds(*SUM_WORDINGS_EN, *SUM_WORDINGS_ZH)
    asked, counted = {}, {}
    for split in SPLITS:
        questions = [question_of(row) for row in rows[name, split]]
        pairs = [(kind_of(question), tuple(numbers_in(question))) for question in questions]
        asked[split] = {pair for kind, pair in pairs if kind in of_sums}
        counted[split] = {pair for kind, pair in pairs if kind in kinds(*COUNT_WORDINGS)}
    assert not asked["train"] & HELD_OUT_SUMS
    assert asked["val"] >= HELD_OUT_SUMS
    assert not counted["train"] & HELD_OUT_COUNTS


def test_sums_are_all_there_once(rows: Rows) -> None:
    wordings = (*SUM_WORDINGS_EN, *SUM_WORDINGS_ZH)
    for split in SPLITS:
        pairs = [pair for pair in SUMS if (pair in HELD_OUT_SUMS) == (split == "val")]
        wanted = {wording.format(a=a, b=b) for a, b in pairs for wording in wordings}
        questions = [question_of(row) for row in rows["sums", split]]
        assert len(questions) == len(set(questions))
        assert set(questions) == wanted


def test_held_out_sums_are_spread_and_their_reverse_is_trained_on() -> None:
    assert len(HELD_OUT_SUMS) == 20
    assert {a + b for a, b in HELD_OUT_SUMS} == set(range(5, 21))
    assert set(SUMS) >= HELD_OUT_SUMS
    assert not {(b, a) for a, b in HELD_OUT_SUMS} & HELD_OUT_SUMS


@pytest.mark.parametrize("name", ["prompts", "tools"])
def test_validation_asks_what_training_never_does(rows: Rows, name: str) -> None:
    known = {question_of(row) for row in rows[name, "train"]}
    assert not known & {question_of(row) for row in rows[name, "val"]}


def test_no_other_sample_data_asks_so(rows: Rows) -> None:
    """What the model answers to these wordings is carried over from others."""
    wordings = kinds(*SUM_WORDINGS_EN, *SUM_WORDINGS_ZH, *COUNT_WORDINGS, *SORT_WORDINGS)
    turns = [turn for row in rows["chat", "train"] for turn in row["conversations"]]
    assert not wordings & {kind_of(turn["content"]) for turn in turns}


@pytest.mark.parametrize("name", SAMPLE_DATA)
def test_the_same_seed_writes_the_same_bytes(tmp_path: Path, name: str) -> None:
    paths = [tmp_path / letter for letter in "abc"]
    for path, seed in zip(paths, (0, 0, 1), strict=True):
        write_sample(path, "val", SAMPLE_DATA[name], seed)
    first, second, third = (path.read_bytes() for path in paths)
    assert first == second != third


def test_tools_know_what_is_asked(rows: Rows) -> None:
    called = dict.fromkeys(TOOLS, 0)
    for row in rows["tools", "train"] + rows["tools", "val"]:
        system, user = row["conversations"]
        assert json.loads(system["tools"]) == TOOL_SCHEMAS
        asked_for = asked_for_in(user["content"])
        if isinstance(asked_for[0], int):
            called["calculator"] += 1
            assert row["gt"] == sum(map(int, asked_for))
            assert 20 < row["gt"] < 100
        else:
            called["lookup"] += 1
            assert row["gt"] == int(TOOLS["lookup"](*asked_for))
        assert not user["content"].startswith(REQUESTS)
    assert 0.4 < called["lookup"] / sum(called.values()) < 0.6


def asked_for_in(question: str) -> tuple[Any, Any]:
    """(37, 48), or ("Mira", "apples") in either language."""
    if numbers := numbers_in(question):
        return numbers[0], numbers[1]
    found = re.fullmatch(r"How many (\w+) has (\w+)\?|(\w+)有多少(\w+)？", question)
    assert found is not None
    what, name = (found[1], found[2]) if found[1] else (found[4], found[3])
    (person,) = (p.name.en for p in PEOPLE if name in (p.name.en, p.name.zh))
    (thing,) = (t.en for t in THINGS if what in (t.en, t.zh))
    return person, thing


def test_conversations_call_tools_on_request_and_else_now_and_then(rows: Rows) -> None:
    chats = rows["chat", "train"]
    offered = [row["conversations"] for row in chats if "tools" in row["conversations"][0]]
    requested = [turns for turns in offered if turns[1]["content"].startswith(REQUESTS)]
    plain = [turns for turns in offered if turns not in requested]
    calls = [turns for turns in plain if "tool_calls" in turns[2]]
    assert 0.06 < len(plain) / len(chats) < 0.1
    assert 0.7 / CALLED_ONE_IN < len(calls) / len(plain) < 1.4 / CALLED_ONE_IN
    assert all("tool_calls" in turns[2] for turns in requested)
    calls += requested
    for _, _, asking, response, answer in calls:
        (call,) = json.loads(asking["tool_calls"])
        assert TOOLS[call["name"]](**call["arguments"]) == response["content"]
        assert answer["content"] in (f"It is {response['content']}.", f"是 {response['content']}。")
    unknown = [turns[2]["content"] for turns in offered if "tool_calls" not in turns[2]]
    assert set(unknown) == {"I do not know.", "我不知道。"}
    questions = [turns[1]["content"] for turns in offered]
    for request in REQUESTS:
        questions = [question.removeprefix(request) for question in questions]
    shown = {asked_for_in(question) for question in questions}
    kept = {asked_for_in(question_of(row)) for split in SPLITS for row in rows["tools", split]}
    assert not shown & kept, "in no language"
    facts = [{key for key in part if isinstance(key[0], str)} for part in (shown, kept)]
    assert min(map(len, facts)) > 60


@pytest.mark.parametrize("name", TASKS)
def test_every_row_can_be_read(tokenizer: Tokenizer, name: str) -> None:
    for split in SPLITS:
        cache = build_token_cache(find_data_file(f"sample:{name}", split), tokenizer, PROMPT)
        assert cache.num_skipped == 0
        assert cache.lengths.max() <= (110 if name == "tools" else 64)


def test_a_call_and_its_answer_fit_a_row_of_tiny(tokenizer: Tokenizer, rows: Rows) -> None:
    encoder = ChatEncoder(tokenizer)
    offered = [row for row in rows["chat", "train"] if "tools" in row["conversations"][0]]
    spans = [encoder.spans(read_chat(row["conversations"], "turns")) for row in offered]
    assert max(len(sample.ids) for sample in encoder.encode(spans)) <= 170


def test_sample_data_is_named_like_a_file(tmp_path: Path) -> None:
    assert find_data_file("a.jsonl", "train") == "a.jsonl"
    for name, data in SAMPLE_DATA.items():
        assert data.name == name
    path = find_data_file("sample:sums", "val")
    assert path == str(sample_data_path("val", SUMS_DATA))
    message = r"sample:tolls: no .*did you mean sample:tools\?.*sample:text, sample:chat"
    with pytest.raises(ConfigError, match=message):
        find_data_file("sample:tolls", "train")

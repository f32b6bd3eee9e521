"""What a mistyped name may have meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from minimind.config.model import PRESETS
from minimind.config.spelling import did_you_mean, did_you_mean_file, find_alike, find_slip

NAMES = ("hidden_size", "num_hidden_layers", "head_dim", "seq_len", "max_steps", "warmup_steps")


@pytest.mark.parametrize(
    ("given", "alike"),
    [
        ("hiden_size", ["hidden_size"]),
        ("HIDDEN-SIZE", ["hidden_size"]),
        ("max_step", ["max_steps"]),
        ("warmup", ["warmup_steps"]),
        ("layers", ["num_hidden_layers"]),
        ("xyz", []),
        ("", []),
        ("--", []),
    ],
)
def test_the_closest_names_come_first(given: str, alike: list[str]):
    assert find_alike(given, NAMES) == alike


def test_a_guess_names_few_and_in_the_users_spelling():
    assert did_you_mean("minimind2-smal", PRESETS) == " (did you mean minimind2-small?)"
    assert did_you_mean("ab1", ["ab2", "ab3"]) == " (did you mean ab2 or ab3?)"
    assert did_you_mean("max_step", NAMES, "--{}".format) == " (did you mean --max_steps?)"
    assert did_you_mean("xyz", NAMES) == ""


def test_a_files_neighbours_are_guessed_too(tmp_path: Path):
    (tmp_path / "train.jsonl").touch()
    assert did_you_mean_file(tmp_path / "trian.jsonl") == (
        f" (did you mean {tmp_path / 'train.jsonl'}?)"
    )
    assert did_you_mean_file(tmp_path / "none" / "x") == ""


KEYS = ("role", "content", "reasoning_content", "tool_calls", "weight", "label", "text", "gt",
        "cot", "conversation")  # fmt: skip


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("contnet", "content"),
        ("contents", "content"),
        ("Content", "content"),
        ("tool_call", "tool_calls"),
        ("toolCalls", "tool_calls"),
        ("tool-calls", "tool_calls"),
        ("reasonning_content", "reasoning_content"),
        ("reasoning_contents", "reasoning_content"),
        ("lable", "label"),
        ("roel", "role"),
        ("texts", "text"),
    ],
)
def test_a_slip_is_found(given: str, meant: str) -> None:
    assert find_slip(given, KEYS) == meant


@pytest.mark.parametrize(
    "given",
    [
        "rule",
        "height",
        "test",
        "source",
        "id",
        "name",
        "tool_call_id",
        "got",
        "g",
        "",
        "context",
        "le",
        "cost",
        "conversation_id",
    ],
)
def test_another_word_is_no_slip(given: str) -> None:
    assert find_slip(given, KEYS) is None

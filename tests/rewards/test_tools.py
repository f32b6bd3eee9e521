"""Tools for a policy: what each call gives, however wrong it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pooled_functions import write_functions

from minimind.data.chat_encoding import ChatEncoder
from minimind.errors import ConfigError
from minimind.rewards.tagged_text import read_calls
from minimind.rewards.tools import ToolBox
from minimind.samples.text import load_sample_tokenizer

ODD = """
import os
import time

def echo(value=None, **more):
    return value if not more else more

def raises(text="no"):
    raise ValueError(text)

def hangs():
    time.sleep(600)

def dies():
    os._exit(1)

def no_json():
    return {1, 2}

def spells():
    return "a\\ud800b"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tools")
    write_functions(folder)
    (folder / "odd.py").write_text(ODD)
    return folder


@pytest.fixture(scope="module")
def tools(folder: Path) -> Iterator[ToolBox]:
    odd = f"{folder}/odd.py"
    named = {name: f"{odd}:{name}" for name in ("echo", "raises", "dies", "no_json", "spells")}
    named |= {"calculator": "calculator", "same": "calculator"}
    named["weather"] = f"{folder}/own.py:weather(unit='F')"
    box = ToolBox(named, num_workers=1, timeout_s=30.0)
    yield box
    box.close()


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


def test_each_call_has_its_result_in_order(tools: ToolBox):
    calls = [
        call("calculator", expression="37 + 48"),
        None,
        call("weather", city="塔恩"),
        call("same", expression="2*3"),
        call("nothing"),
        call("calculator", expression="1/0"),
    ]
    assert tools.call(calls) == [
        "85",
        "error: no JSON object with a name and arguments",
        "塔恩: 20 F",
        "6",
        "error: no tool nothing",
        "error: division by zero",
    ]
    assert tools.call([]) == []


def test_a_name_that_is_nearly_right_is_guessed(tools: ToolBox):
    (found,) = tools.call([call("calculater", expression="1")])
    assert found == "error: no tool calculater (did you mean calculator?)"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("as it is\n", "as it is\n"),
        ({"城": [1, None, True, 0.5]}, '{"城": [1, null, true, 0.5]}'),
        (None, "null"),
        (12, "12"),
        ("x" * 3000, "x" * 2000),
    ],
    ids=["text", "object", "null", "number", "long"],
)
def test_what_is_no_text_is_json(tools: ToolBox, value: Any, shown: str):
    assert tools.call([call("echo", value=value)]) == [shown]


def test_what_is_no_json_is_pythons_text(tools: ToolBox):
    assert tools.call([call("no_json")]) == ["{1, 2}"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (call("raises", text="too cold"), ["ValueError: too cold"]),
        (call("raises", text="x" * 5000), ["ValueError: xxx"]),
        (call("calculator"), ["TypeError", "expression"]),
        (call("calculator", expression="1", digits=2), ["TypeError", "digits"]),
        (call("echo", **{"no name": 1, "": 2}), ['{"no name": 1, "": 2}']),
    ],
    ids=["raises", "long", "missing", "unknown", "odd names"],
)
def test_a_call_that_fails_says_why(tools: ToolBox, asked: dict[str, Any], words: list[str]):
    (found,) = tools.call([asked])
    for word in words:
        assert word in found
    assert found.startswith("error: ") or asked["name"] == "echo"
    assert len(found) <= 2000


def test_a_tool_that_ends_its_process_does_not_disturb_the_others(tools: ToolBox):
    good = call("calculator", expression="1 + 1")
    first, died, last = tools.call([good, call("dies"), good])
    assert (first, last) == ("2", "2")
    assert died.startswith("error: ")


def test_a_tool_that_takes_too_long(folder: Path):
    box = ToolBox({"hangs": f"{folder}/odd.py:hangs"}, num_workers=1, timeout_s=0.2)
    box._pool._first_call_s = 0.2
    try:
        (found,) = box.call([call("hangs")])
    finally:
        box.close()
    assert found.startswith("error: ")
    assert "took longer than 0.2 s" in found


def test_results_can_be_encoded_whatever_they_hold(tools: ToolBox):
    results = tools.call(
        [call("spells"), call("echo", value="\ud800"), call("raises", text="\ud800")]
    )
    assert len(ChatEncoder(load_sample_tokenizer()).result_ids(results)) > 0
    assert results[0] == "a\ufffdb"
    assert json.loads(json.dumps(results)) == results


def test_arguments_nested_deeply_end_nothing(tools: ToolBox):
    """As a policy may write them that repeats itself."""
    for depth in (100, 400, 900, 5000, 100_000):
        nested = "[" * depth + "]" * depth
        text = f'<tool_call>{{"name": "echo", "arguments": {{"value": {nested}}}}}</tool_call>'
        (found,) = tools.call(read_calls(text))
        assert found.startswith(("[[[", "error: "))


def test_functions_are_looked_for_before_a_run(folder: Path, tools: ToolBox):
    tools.check()
    with pytest.raises(ConfigError, match=r"did you mean calculator\?"):
        ToolBox({"sum": "calculater"}, num_workers=1, timeout_s=1.0)
    box = ToolBox({"echo": f"{folder}/odd.py:ecco"}, num_workers=1, timeout_s=5.0)
    with pytest.raises(ConfigError, match=r"odd.py has no function ecco \(did you mean echo\?\)"):
        box.check()
    box.close()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("no call", []),
        ('<tool_call>{"name": "f", "arguments": {}}</tool_call>', [call("f")]),
        ('<tool_call>{"name": "f", "arguments": {}}', [None]),
        ("<tool_call>{}</tool_call><tool_call>", [None, None]),
        ('</tool_call><tool_call>{"name": "f", "arguments": {}}</tool_call>', [call("f"), None]),
        ("<tool_call><tool_call>{}</tool_call>", [None, None]),
        ('<think><tool_call>{"name": "f", "arguments": {}}</tool_call></think>', []),
    ],
)
def test_a_call_that_is_not_closed_is_one_that_is_not_well_formed(text: str, found: list[Any]):
    assert read_calls(text) == found

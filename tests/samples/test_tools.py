"""The sample's tools: right, bounded, and patient with what a model may write."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from minimind.samples.tools import TOOL_SCHEMAS, TOOLS, calculator, lookup
from minimind.samples.world import PEOPLE, THINGS


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("37 + 48", "85"),
        (" 2*(3+4) ", "14"),
        ("7 / 2", "3.5"),
        ("1 / 3", "0.3333333333"),
        ("0.1 + 0.2", "0.3"),
        ("-(-3) - +4", "-1"),
        ("6 / 3", "2"),
        ("999999999999 + 1", "1000000000000"),
        ("(" * 40 + "1" + ")" * 40, "1"),
    ],
)
def test_expressions_are_worked_out_exactly(expression: str, value: str) -> None:
    assert calculator(expression) == value


@pytest.mark.parametrize(
    ("expression", "error"),
    [
        ("", "must be a text"),
        (85, "must be a text"),
        ("1 +", "not an expression"),
        ("1 2", "not an expression"),
        ("01", "not an expression"),
        ("3(4)", "not an expression"),
        ("()", "not an expression"),
        ("9 ** 9", "not an expression"),
        ("7 // 2", "not an expression"),
        ("9 ** 9 ** 9 ** 9", "not an expression"),
        ("x + 1", "only numbers"),
        ("__import__('os')", "only numbers"),
        ("1e999", "only numbers"),
        ("三 + 4", "only numbers"),
        ("1 / 0", "division by zero"),
        ("1 / (2 - 2.0)", "division by zero"),
        ("1" * 101, "longer than 100 characters"),
        ("9" * 50, "larger than 1,000,000,000,000"),
        ("999999 * 9999999", "larger than"),
        ("9" * 99 + ".", "larger than"),
    ],
)
def test_anything_else_gives_an_error_and_never_raises(expression: str, error: str) -> None:
    text = calculator(expression)
    assert text.startswith("error: ")
    assert error in text


def test_lookups_are_numbers_that_both_languages_share() -> None:
    found = {}
    for person in PEOPLE:
        for thing in THINGS:
            found[person, thing] = number = int(lookup(person.name.en, thing.en))
            assert 1 <= number <= 99
            assert lookup(f" {person.name.zh}", thing.zh) == str(number)
            assert lookup(person.name.en.upper(), thing.zh) == str(number)
    assert len(set(found.values())) > 70
    assert lookup("Mira", "apples") == "7", "fixed: data that was written stays right"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("Nobody", "apples"), "error: nobody is called 'Nobody'"),
        (("Mira", "stars"), "error: nothing is known of 'stars'"),
        ((None, "apples"), "error: nobody is called 'None'"),
        (("Mira", ["apples"]), "error: nothing is known of"),
        (("x" * 500, "apples"), "xxx…"),
    ],
)
def test_lookups_of_what_is_unknown(arguments: tuple[str, str], error: str) -> None:
    text = lookup(*arguments)
    assert error in text
    assert len(text) < 80


def test_schemas_name_the_functions() -> None:
    assert [schema["name"] for schema in TOOL_SCHEMAS] == list(TOOLS)
    assert TOOLS[TOOL_SCHEMAS[0]["name"]](expression="1+1") == "2"
    assert json.loads(json.dumps(TOOL_SCHEMAS)) == TOOL_SCHEMAS


def test_the_tools_load_nothing_heavy() -> None:
    script = (
        "import sys, minimind.samples.tools\n"
        "heavy = {'torch', 'numpy', 'tokenizers', 'jinja2'} & sys.modules.keys()\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")

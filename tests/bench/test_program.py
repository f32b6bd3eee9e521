"""A benchmark's command line and exit status."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.program import (
    NUMBER,
    MeasurementError,
    Options,
    parse_names,
    parse_numbers,
    run_program,
)
from minimind.errors import ConfigError, DataError


@pytest.fixture
def parser() -> Options:
    made = Options("x", "Says what it does.", must_write=False)
    made.add("steps", 10, "of a row", **NUMBER)
    made.add("seed", 0, "of turns", type=int)
    made.add("data", None, "a file")
    made.add("names", ["a", "b"], "some", nargs="+")
    made.add("quick", False, "small", action="store_true")
    return made


def test_defaults_stand_in_the_help_where_there_are_some(parser: Options) -> None:
    text = " ".join(parser.format_help().split())
    assert text.startswith("usage: python -m bench.x")
    for said in ("of a row (default: 10)", "of turns (default: 0)", "some (default: a b)"):
        assert said in text
    for silent in ("a file", "small"):
        assert f"{silent} (default" not in text


def test_a_number_is_1_or_more(parser: Options, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser.parse_args(["--steps", "0"])
    assert "--steps: 0 is below 1" in capsys.readouterr().err


def raises(error: BaseException) -> Callable[[argparse.Namespace], int | None]:
    def program(options: argparse.Namespace) -> int | None:
        raise error

    return program


@pytest.mark.parametrize(
    ("program", "status"),
    [
        (lambda options: None, 0),
        (lambda options: 3, 3),
        (raises(MeasurementError("broke")), 1),
        (raises(ConfigError("no")), 2),
        (raises(DataError("no")), 2),
        (raises(KeyboardInterrupt()), 130),
    ],
)
def test_how_it_ended_is_its_exit_status(
    program: Callable[[argparse.Namespace], int | None], status: int, parser: Options
) -> None:
    assert run_program(parser, program, []) == status


def test_a_file_that_cannot_be_written_is_refused_before_anything_runs(
    parser: Options, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "results.json"
    assert run_program(parser, raises(AssertionError()), ["--json", str(path)]) == 2


def test_lists_are_read_or_refused() -> None:
    assert parse_names("a, b", "--rows", ["a", "b", "c"]) == ["a", "b"]
    assert parse_numbers("1,8", "--batch") == [1, 8]
    with pytest.raises(ConfigError, match="--rows d: there are a, b"):
        parse_names("d", "--rows", ["a", "b"])
    with pytest.raises(ConfigError, match="different names"):
        parse_names("a,a", "--rows")
    for text in ("1,x", "0", ""):
        with pytest.raises(ConfigError, match="whole numbers above 0"):
            parse_numbers(text, "--batch")

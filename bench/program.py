"""Makes a benchmark a program: its options, and the exit status of its work."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.harness import check_writable
from minimind.errors import ConfigError, MiniMindError
from minimind.runtime.logging import set_up_logging

logger = logging.getLogger("bench")


class Options(argparse.ArgumentParser):
    """Parses a benchmark's command line: --json and the benchmark's own options; the module's
    docstring is the text of --help."""

    def __init__(self, module: str, about: str | None, *, must_write: bool = True) -> None:
        super().__init__(
            prog=f"python -m bench.{module}",
            description=about,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument(
            "--json", type=Path, required=must_write, metavar="FILE", help="results file"
        )

    def add(self, name: str, default: Any, text: str, **more: Any) -> None:
        """Adds the option --name; its help shows the default, if there is one."""
        said = " ".join(default) if isinstance(default, list) else default
        shown = (
            "" if default is None or default is False or default == [] else f" (default: {said})"
        )
        self.add_argument(f"--{name}", default=default, help=text + shown, **more)


def at_least(least: int) -> Callable[[str], int]:
    """Makes the type of an option that is a whole number."""

    def parse(text: str) -> int:
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f"{value} is below {least}")
        return value

    parse.__name__ = "whole number"
    return parse


NUMBER: dict[str, Any] = {"type": at_least(1), "metavar": "N"}
"""The type of an option that counts."""


def parse_names(text: str, flag: str, allowed: Sequence[str] | None = None) -> list[str]:
    """Reads `A,B`. Raises ConfigError for an unknown name, for none and for one given twice."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if allowed is not None and name not in allowed]:
        raise ConfigError(f"{flag} {unknown[0]}: there are {', '.join(allowed or ())}")
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"{flag} {text}: give one or more different names")
    return names


def parse_numbers(text: str, flag: str) -> list[int]:
    """Reads `1,8,32`. Raises ConfigError."""
    try:
        return [at_least(1)(part) for part in text.split(",")]
    except (ValueError, argparse.ArgumentTypeError):
        raise ConfigError(f"{flag} {text}: give whole numbers above 0, as in 1,8,32") from None


class MeasurementError(Exception):
    """Reports that the measured program broke."""


def run_program(
    parser: argparse.ArgumentParser,
    program: Callable[[argparse.Namespace], int | None],
    argv: Sequence[str] | None,
) -> int:
    """Runs the program and gives its exit status, 0 where it returns None: 1 where the measured
    program breaks, 2 for errors that the user can correct, such as a results file that cannot be
    written, 130 for Ctrl-C."""
    set_up_logging(0)
    options = parser.parse_args(argv)
    try:
        if options.json:
            check_writable(options.json)
        return program(options) or 0
    except MiniMindError as error:
        status, message = 2, error
    except MeasurementError as error:
        status, message = 1, error
    except KeyboardInterrupt:
        return 130
    logger.error("error: %s", message)
    return status

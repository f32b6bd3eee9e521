"""Parses the flags of the verbs other than train, whose flags minimind.run builds from recipes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from minimind.config.spelling import did_you_mean


class VerbParser(argparse.ArgumentParser):
    """Parses flags as ArgumentParser does, but reports an unknown flag, with a guess at what was
    meant, before a missing one: the missing flag is often the mistyped one."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        given = list(sys.argv[1:] if args is None else args)
        known = self._option_string_actions
        for argument in given:
            flag = argument.partition("=")[0]
            if argument == "--":
                break
            # argparse takes an argument with a space for a value, and the beginning of a flag for
            # the whole flag.
            if not flag.startswith("--") or " " in argument:
                continue
            if not any(option.startswith(flag) for option in known):
                guess = did_you_mean(flag, [option for option in known if option.startswith("--")])
                self.exit(
                    2,
                    f"{self.prog}: error: unknown flag: {flag}{guess}\n(--help lists all flags)\n",
                )
        return super().parse_args(given, namespace)

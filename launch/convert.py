"""Converts a checkpoint: `minimind convert`, from a checkout."""

import sys

from minimind.cli.main import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("convert", sys.argv[1:]))

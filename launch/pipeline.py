"""Runs the steps of a recipe, from text to a chat model: `minimind pipeline`, from a checkout."""

import sys

from minimind.cli.main import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("pipeline", sys.argv[1:]))

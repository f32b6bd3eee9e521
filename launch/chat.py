"""Talks with a model in the terminal: `minimind chat`, from a checkout."""

import sys

from minimind.cli.main import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("chat", sys.argv[1:]))

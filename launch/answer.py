"""Answers a file of conversations with one model: `minimind answer`, from a checkout."""

import sys

from minimind.cli.main import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("answer", sys.argv[1:]))

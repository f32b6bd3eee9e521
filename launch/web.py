"""Serves a web page to chat with a server: `minimind web`, from a checkout."""

import sys

from minimind.cli.main import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("web", sys.argv[1:]))

"""Serves checkpoints with OpenAI's API: `minimind serve`, from a checkout."""

import sys

from minimind.cli.main import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("serve", sys.argv[1:]))

"""Evaluates checkpoints: `minimind evaluate`, from a checkout."""

import sys
from pathlib import Path

from minimind.cli.main import run_verb

if __name__ == "__main__":
    # Some tasks of lm-evaluation-harness import Hugging Face's `evaluate`; this file must not be
    # found instead.
    sys.path[:] = [path for path in sys.path if Path(path) != Path(__file__).parent]
    sys.exit(run_verb("evaluate", sys.argv[1:]))

"""Runs the `minimind` command: `python -m minimind VERB …`, and `deepspeed --module minimind train
…`."""

import sys

from minimind.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

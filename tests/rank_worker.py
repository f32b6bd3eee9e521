"""Runs one rank for many runs: reads a line of JSON, calls launch/train.py's main, writes a line of
JSON."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "launch"))

import train  # noqa: E402


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what native code prints is no answer
    for line in sys.stdin:
        asked = json.loads(line)
        for name in [name for name in os.environ if name.startswith("MINIMIND_")]:
            del os.environ[name]
        os.environ |= asked["environment"]
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                exec(asked["prelude"], {})
                status = train.main(asked["arguments"])
            except BaseException:
                traceback.print_exc(file=said)
                status = 1
        logging.getLogger().handlers.clear()
        answers.write(json.dumps({"status": status, "said": said.getvalue()}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()

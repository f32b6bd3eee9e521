"""The process that rehearses: runs in a JSON file, a report for each in another, line by line.

`python -m minimind.rehearsal.worker POINTS REPORTS STUB`, STUB "" where PyTorch can do without.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> int:
    points, reports, stub = argv
    if stub:
        ctypes.CDLL(stub, ctypes.RTLD_GLOBAL)  # before PyTorch looks for its devices
    from minimind.errors import MiniMindError
    from minimind.rehearsal.steps import Rehearsals

    work = json.loads(Path(points).read_text(encoding="utf-8"))
    rehearsals = Rehearsals(work["device"], work["world_size"])
    with open(reports, "a", encoding="utf-8") as file:
        for run in work["runs"]:
            began = time.perf_counter()
            try:
                rehearse = rehearsals.generate if "params" in run else rehearsals.rehearse
                report = rehearse(run)
                report["seconds"] = time.perf_counter() - began
            except MiniMindError as error:
                report = {"refused": type(error).__name__, "message": str(error)}
            except Exception:
                report = {"broke": traceback.format_exc()}
            file.write(json.dumps(report) + "\n")
            file.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

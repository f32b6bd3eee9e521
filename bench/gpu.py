"""Everything that wants a GPU, in parts that end within minutes: `python -m bench.gpu`.

Each part is a few commands (bench/gpu_parts.py); each command writes its own results file, so that
a part that is cut off loses only what was under way. `--small` runs the same commands at sizes for
a CPU. Exit status: 0 where every command ended well or was left out for want of a package, else 1.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.gpu_parts import PARTS, Command
from bench.harness import describe_machine, results_folder
from minimind.runtime.devices import find_device

LIMIT_S = 480
"""Of one part."""


def main(argv: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    last = time.monotonic() + options.limit_s
    # Whoever ends this process means the command that runs, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    machine = describe_machine(find_device())
    folder = options.output or results_folder(machine)
    folder.mkdir(parents=True, exist_ok=True)
    done = []
    for part in options.parts:
        end = min(time.monotonic() + LIMIT_S, last)
        for command in PARTS[part](options):
            done.append({"part": part, **run_command(command, folder, end - time.monotonic())})
            text = json.dumps({"machine": machine, "commands": done}, indent=1) + "\n"
            (folder / "gpu.json").write_text(text, encoding="utf-8")
    for row in done:
        print(f"{row['part']:8} {row['name']:40} {row['seconds']:7.1f} s  {row['result']}")
    return int(any(row["failed"] for row in done))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument(
        "--parts", type=_parse_parts, default=list(PARTS), metavar="A,B",
        help=f"some of {','.join(PARTS)} (default: all)",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, help="folder (default: bench/results/<device>)")
    parser.add_argument("--data", help="JSON lines of text (default: the embedded sample data)")
    parser.add_argument("--val_data", help="held-out JSON lines, for the curves")
    parser.add_argument("--tokenizer", help="its folder (default: the sample data's own)")
    parser.add_argument("--minutes", type=float, default=5.0, help="of each curve (default: 5)")
    parser.add_argument(
        "--limit_s", type=float, default=float("inf"), help="of all parts together (default: none)"
    )
    parser.add_argument("--small", action="store_true", help="a rehearsal at a CPU's sizes")
    return parser


def _parse_parts(text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if unknown := [part for part in parts if part not in PARTS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]}: the parts are {', '.join(PARTS)}")
    return parts


def run_command(command: Command, folder: Path, limit_s: float) -> dict[str, object]:
    """Runs it with its output on the console and in a log beside its results."""
    start = time.monotonic()
    print(f"--- {command.name}: {' '.join(command.arguments)}", flush=True)
    if command.missing:
        result, failed = f"left out: {', '.join(command.missing)} not installed", False
    elif limit_s <= 0:
        result, failed = "no time left", True
    else:
        result = _run(command, folder, min(limit_s, command.limit_s))
        failed = result != "ok"
    seconds = time.monotonic() - start
    return {"name": command.name, "result": result, "failed": failed, "seconds": seconds}


def _run(command: Command, folder: Path, limit_s: float) -> str:
    arguments = [sys.executable, "-m", *command.arguments]
    if command.writes_json:
        arguments += ["--json", str(folder / f"{command.name}.json")]
    log = folder / f"{command.name}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            arguments, stdout=file, stderr=subprocess.STDOUT,
            env=os.environ | dict(command.environment), start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(limit_s)
            result = "ok" if status == 0 else f"exit status {status}"
        except subprocess.TimeoutExpired:
            result = f"stopped after {limit_s:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    print(log.read_text(encoding="utf-8", errors="replace")[-6000:], flush=True)
    return result


if __name__ == "__main__":
    sys.exit(main())

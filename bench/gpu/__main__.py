"""Runs all tests and benchmarks that need a GPU, in parts that end within minutes: `python -m
bench.gpu`.

Each part is a few commands (bench/gpu/parts.py), and each command writes its own results file: a
part that is cut off loses only the command under way, and the next part runs. `--archive` puts all
results of the call in one file, which is rewritten after every command. `--small` runs the same
commands at sizes for a CPU. Exit status: 0 where every command ended well or was left out for want
of a package or a program, 1 where one did not, 130 where the call was interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.gpu.parts import CALLS, PARTS, Command, find_program, list_commands
from bench.harness import describe_machine, results_folder
from bench.processes import run_logged
from minimind.runtime.devices import find_device

LIMIT_S = 480
"""The seconds that one part may take."""
_INTERRUPTED = "interrupted"


def main(argv: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    last = time.monotonic() + options.limit_s
    # A signal to this process also ends the command that is running, and the results so far are
    # kept.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    machine = describe_machine(find_device())
    folder = options.output or results_folder(machine)
    folder.mkdir(parents=True, exist_ok=True)
    before = _stamps(folder)
    done: list[dict[str, Any]] = []
    for part in options.parts:
        end = min(time.monotonic() + LIMIT_S, last)
        for command in list_commands(part, options):
            if done and done[-1]["result"] == _INTERRUPTED:
                break
            done.append({"part": part, **run_command(command, folder, end - time.monotonic())})
            text = json.dumps({"machine": machine, "commands": done}, indent=1) + "\n"
            (folder / "gpu.json").write_text(text, encoding="utf-8")
            if options.archive:
                write_archive(options.archive, folder, before)
    for row in done:
        print(f"{row['part']:9} {row['name']:40} {row['seconds']:7.1f} s  {row['result']}")
    if any(row["result"] == _INTERRUPTED for row in done):
        return 130
    return int(any(row["failed"] for row in done))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    add = parser.add_argument
    calls = "; ".join(f"{name}: {','.join(parts)}" for name, parts in CALLS.items())
    add("--parts", type=_parse_parts, default=list(PARTS), metavar="A,B",
        help=f"some of {','.join(PARTS)} (default: all in this order), or what fits one call of "
        f"ten minutes ({calls})")  # fmt: skip
    add("--output", type=Path, help="folder (default: bench/results/<device>)")
    add("--archive", type=Path, metavar="FILE.tar.gz", help="all files of this call in one")
    add("--data", help="JSON lines of text (default: the embedded sample data)")
    add("--val_data", help="held-out JSON lines, for the curves")
    add("--tokenizer", help="its folder (default: the sample data's own)")
    add("--tokens", type=int, default=50_000_000, help="of each curve (default: 50,000,000)")
    add("--limit_s", type=float, default=float("inf"), help="of all parts (default: none)")
    add("--small", action="store_true", help="a rehearsal at a CPU's sizes")
    return parser


def _parse_parts(text: str) -> list[str]:
    parts: list[str] = []
    for name in filter(None, (name.strip() for name in text.split(","))):
        if name not in PARTS and name not in CALLS:
            known = f"{', '.join(PARTS)}; of one call each {', '.join(CALLS)}"
            raise argparse.ArgumentTypeError(f"{name}: the parts are {known}")
        parts += CALLS.get(name, (name,))
    return list(dict.fromkeys(parts))


def write_archive(path: Path, folder: Path, before: Mapping[Path, tuple[int, int]]) -> None:
    """Packs the files that this call wrote to `folder`, under the folder's own name. The archive is
    whole, or as it was before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.new")
    with tarfile.open(unfinished, "w:gz") as archive:
        for file, stamp in sorted(_stamps(folder).items()):
            if before.get(file) != stamp and path.resolve() != file.resolve():
                archive.add(file, Path(folder.resolve().name) / file.relative_to(folder))
    os.replace(unfinished, path)


def _stamps(folder: Path) -> dict[Path, tuple[int, int]]:
    """Gives the time of the last change and the size of each file. Files and folders whose names
    begin with a dot are unfinished and left out."""
    found = {}
    for file in folder.rglob("*"):
        if file.is_file() and not any(p.startswith(".") for p in file.relative_to(folder).parts):
            found[file] = (file.stat().st_mtime_ns, file.stat().st_size)
    return found


def run_command(command: Command, folder: Path, limit_s: float) -> dict[str, object]:
    """Runs a command with its output in a log beside its results, and prints the log's end."""
    start = time.monotonic()
    print(f"--- {command.name}: {' '.join((*command.under, *command.arguments))}", flush=True)
    if command.missing:
        result, failed = f"left out: {', '.join(command.missing)} not installed", False
        print(result, flush=True)
    elif limit_s <= 0:
        result, failed = "no time left", True
    else:
        result = _run(command, folder, min(limit_s, command.limit_s))
        failed = result != "ok"
    seconds = time.monotonic() - start
    return {"name": command.name, "result": result, "failed": failed, "seconds": seconds}


def _run(command: Command, folder: Path, limit_s: float) -> str:
    program, *flags = command.under or ("",)
    watched = [find_program(program) or program, *flags] if program else []
    arguments = [*watched, sys.executable, "-m", *command.arguments]
    if command.writes_json:
        arguments += ["--json", str(folder / f"{command.name}.json")]
    log, environment = folder / f"{command.name}.log", os.environ | dict(command.environment)
    try:
        result = _describe_status(run_logged(arguments, log, environment, limit_s))
    except subprocess.TimeoutExpired:
        result = f"stopped after {limit_s:.0f} s"
    except KeyboardInterrupt:
        result = _INTERRUPTED
    print(log.read_text(encoding="utf-8", errors="replace")[-6000:], flush=True)
    return result


def _describe_status(status: int) -> str:
    if status < 0:
        return f"ended by signal {-status}"
    return f"exit status {status}" if status else "ok"


if __name__ == "__main__":
    sys.exit(main())

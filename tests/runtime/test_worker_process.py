"""Workers are processes of their own: whose signals, output, path and end are theirs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pooled_functions import Build, outcomes, wait_for_the_end_of
from training_runs import ROOT


def test_a_worker_that_was_killed_while_idle_is_no_calls_fault(build: Build) -> None:
    pool = build("where", num_workers=1)
    pid = outcomes(pool, [0])[0].value[1]
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.1)
    assert outcomes(pool, [0])[0].value[1] != pid


def test_signals_to_all_processes_of_a_run_are_the_parents(build: Build) -> None:
    pool = build("where", num_workers=1)
    pid = outcomes(pool, [0])[0].value[1]
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGINT)
    assert outcomes(pool, [0])[0].value[1] == pid


def test_what_functions_print_goes_to_stderr(
    build: Build, capfd: pytest.CaptureFixture[str]
) -> None:
    assert outcomes(build("misbehave"), ["print"])[0].value == "print"
    assert capfd.readouterr() == ("", "a word to stdout\n")


def test_what_a_function_started_ends_with_its_worker(build: Build) -> None:
    pool = build("start_program", num_workers=1)
    programs = [one.value for one in outcomes(pool, [0, 0])]
    assert all(Path(f"/proc/{pid}").exists() for pid in programs)
    pool.close()
    for pid in programs:
        wait_for_the_end_of(pid)


SCRIPT = """
import os, sys, time
from minimind.runtime.function_pool import Call, FunctionPool

print("main module", flush=True)
names = ["own:where", "near:double", "own:misbehave"]
pool = FunctionPool(names, num_workers=1, timeout_s=60, shipped={})
print(*pool.call([Call("own:where", 0)])[0].value, flush=True)
print(pool.call([Call("near:double", 2)])[0].value, flush=True)
if "wait" in sys.argv:
    pool.call([Call("own:misbehave", "hang")])
"""


def start_script(functions: Path, *arguments: str) -> subprocess.Popen[str]:
    scripts = functions / "scripts"
    scripts.mkdir(exist_ok=True)
    (scripts / "script.py").write_text(SCRIPT)
    (scripts / "near.py").write_text("double = lambda number: 2 * number")
    return subprocess.Popen(
        [sys.executable, "scripts/script.py", *arguments],
        cwd=functions,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_script_without_a_guard_runs_once_and_its_path_and_folder_are_the_workers(
    functions: Path,
) -> None:
    script = start_script(functions)
    output, _ = script.communicate(timeout=60)
    first, second, third = output.splitlines()
    assert (script.returncode, first, third) == (0, "main module", "4")
    cwd, pid = second.rsplit(" ", 1)
    assert Path(cwd).samefile(functions)
    wait_for_the_end_of(int(pid))


def test_a_busy_worker_ends_when_its_parent_is_killed(functions: Path) -> None:
    script = start_script(functions, "wait")
    assert script.stdout is not None
    lines = [script.stdout.readline() for _ in range(3)]
    pid = int(lines[1].split()[-1])
    assert Path(f"/proc/{pid}").exists()
    script.kill()
    script.communicate()
    wait_for_the_end_of(pid)

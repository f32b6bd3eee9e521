"""Runs of two ranks of which one dies, stops or hangs: it is named, and the last line says how to
go on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from training_runs import LAUNCHER_VARIABLES, ROOT, TRAIN, Train, read_losses

from minimind.runtime.ranks import free_port

AT_CALL = """
import os, signal, sys, threading, runpy
from minimind.engine import loop
whole, calls = loop.seed_micro_batch, []
def faulty(*arguments):
    calls.append(1)
    if len(calls) == 5:
        {fault}
    return whole(*arguments)
loop.seed_micro_batch = faulty
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""
"""Starts a script whose training meets a fault in its fifth step."""


def start_two(flags: list[str], faults: dict[int, str]) -> list[subprocess.Popen[str]]:
    """Starts a run of two ranks, each in a process of its own without a launcher."""
    shared = {k: v for k, v in os.environ.items() if k not in LAUNCHER_VARIABLES}
    shared |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "DS_ACCELERATOR": "cpu"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, "-c", AT_CALL.format(fault=faults.get(rank, "pass")), TRAIN, *flags],
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )
        for rank in range(2)
    ]


@pytest.fixture
def few_flags(flags: list[str]) -> list[str]:
    return [*flags, "--eval_every", "0", "--set", "rank_timeout_s=6"]


def outcome(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Gives the exit status and the last line that was written."""
    _, said = process.communicate(timeout=200)
    return process.returncode, said.strip().splitlines()[-1]


@pytest.mark.faults("kill -9 of one of two ranks", "it is named; the run resumes on one rank")
def test_a_killed_rank_is_named_and_the_run_goes_on_with_the_other_alone(
    few_flags: list[str], tmp_path: Path, train: Train
):
    first, second = start_two(few_flags, {1: "os.kill(os.getpid(), signal.SIGKILL)"})
    status, said = outcome(first)
    second.communicate()
    assert status == 1, said
    assert said.startswith(f"error: rank 1 (process {second.pid} of host ")
    assert "has died, last seen at " in said
    assert said.endswith(f"add --resume --output_dir {tmp_path / 'run'} to the command")
    assert train("--resume", "--output_dir", str(tmp_path / "run")) == 0
    assert [step for step, *_ in read_losses(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lost", "fault", "expected"),
    [
        (1, "os.kill(os.getpid(), signal.SIGSTOP)", "no sign of life for .*process is stopped"),
        (0, "os.kill(os.getpid(), signal.SIGSTOP)", "store of the ranks.* has not answered"),
        (0, "os.kill(os.getpid(), signal.SIGKILL)", "rank 0 .* has died"),
        (1, "threading.Event().wait()", "rank 1 .* hangs at minimind/engine/loop.py:.*_update"),
        (1, "raise ValueError('of its own')", "rank 1 .* has failed: ValueError: of its own"),
        (0, "raise OSError(28, 'of its own')", "rank 0 .* has failed: OSError: .*of its own"),
    ],
)
@pytest.mark.faults("a rank that is stopped, hangs or fails", "it is named within its limit")
def test_a_rank_that_stops_hangs_or_fails_is_named(
    few_flags: list[str], lost: int, fault: str, expected: str
):
    processes = start_two(few_flags, {lost: fault})
    began = time.monotonic()
    try:
        status, said = outcome(processes[1 - lost])
    finally:
        for process in processes:
            process.kill()
    for process in processes:
        process.wait()
    assert status == 1, said
    assert time.monotonic() - began < 180, "long before the process group's own two hours"
    prefix = "" if lost else "rank 1: "
    assert said.startswith(f"{prefix}error: "), said
    assert re.search(expected, said), said
    assert "--resume --output_dir" in said


COMMON_AND_SLOW = """
        import time
        from minimind.errors import TrainingError
        from minimind.monitors.background import Monitors
        Monitors.close = lambda *_: time.sleep(8)
        raise TrainingError('of both ranks')"""


@pytest.mark.slow
@pytest.mark.faults("an error of all ranks, and a monitor that is slow to end", "it is said")
def test_what_all_ranks_meet_is_said_before_the_launcher_ends_them(few_flags: list[str]):
    """A launcher ends all ranks as soon as one has ended."""
    first, second = processes = start_two(few_flags, dict.fromkeys((0, 1), COMMON_AND_SLOW))
    try:
        while all(process.poll() is None for process in processes):
            time.sleep(0.1)
        for process in processes:
            process.terminate()
        _, said = first.communicate(timeout=60)
        assert "error: of both ranks" in said
        assert first.returncode == 1
        second.communicate(timeout=60)
    finally:
        for process in processes:
            process.kill()


@pytest.mark.slow
@pytest.mark.faults("torchrun starts a failed run again", "it resumes itself")
def test_torchrun_starts_a_run_again_and_it_resumes_itself(
    few_flags: list[str], tmp_path: Path, train: Train
):
    assert train(*few_flags, "--output_dir", str(tmp_path / "whole")) == 0
    once = "os.environ['TORCHELASTIC_RESTART_COUNT'] == '0' and os.environ['RANK'] == '1'"
    script = tmp_path / "faulty.py"
    script.write_text(AT_CALL.format(fault=f"{once} and os.kill(os.getpid(), signal.SIGKILL)"))
    program = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--max_restarts", "1"]
    done = subprocess.run(
        [*program, "--nproc_per_node", "2", str(script), str(TRAIN), *few_flags],
        env={k: v for k, v in os.environ.items() if k not in LAUNCHER_VARIABLES}
        | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT}/kernels"},
        capture_output=True,
        cwd=ROOT,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    # Step 4 may still have been on its way to the disk.
    assert re.search(r"resumed    from step [24] of", done.stderr), done.stderr
    assert read_losses(tmp_path / "run") == read_losses(tmp_path / "whole")

"""The example for Slurm: it saves before the time limit, goes back into the queue and resumes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from training_runs import LAUNCHER_VARIABLES, ROOT, Train, assert_same_run

from minimind.runtime.ranks import free_port

SCRIPT = ROOT / "launch" / "slurm" / "train.sbatch"

COMMANDS = {
    "srun": 'echo $$ > "$STEP"; exec "$@"',
    "scontrol": 'if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> "$CALLS"; fi',
    # What Slurm does: the signal goes to the processes of the step.
    "scancel": 'echo "$@" >> "$CALLS"; kill -TERM "$(cat "$STEP")"',
}
"""What stands for Slurm's commands."""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, body in COMMANDS.items():
        (commands / name).write_text(f"#!/bin/sh\n{body}\n")
        (commands / name).chmod(0o755)
    paths = [str(commands), str(Path(sys.executable).parent), os.environ["PATH"]]
    kept = {k: v for k, v in os.environ.items() if k not in LAUNCHER_VARIABLES}
    return kept | {
        "PATH": os.pathsep.join(paths),
        "CALLS": str(tmp_path / "calls"),
        "STEP": str(tmp_path / "step"),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "here",
        "SLURM_NNODES": "1",
        "SLURM_GPUS_ON_NODE": "2",
        "MASTER_PORT": str(free_port()),
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
    }


@pytest.mark.slow
@pytest.mark.faults("a Slurm job at its time limit", "saves, and resumes from the queue")
def test_a_job_at_its_time_limit_saves_and_resumes_from_the_queue(
    train: Train, flags: list[str], tmp_path: Path, environment: dict[str, str]
):
    run, rest = tmp_path / "run", ["--eval_every", "0", "--set", "gradient_clipping=0"]
    arguments = [*flags, *rest, "--max_steps", "200", "--save_every", "1"]
    del arguments[arguments.index("--output_dir") :][:2]
    command = ["bash", str(SCRIPT), str(run), *arguments]

    def start() -> subprocess.Popen[str]:
        options = {"stderr": subprocess.PIPE, "text": True, "cwd": ROOT, "env": environment}
        return subprocess.Popen(command, **options)

    job = start()
    while not (run / "checkpoints" / "latest").exists():
        assert job.poll() is None, job.communicate()
        time.sleep(0.1)
    job.send_signal(signal.SIGUSR1)
    _, said = job.communicate(timeout=200)
    assert job.returncode == 0, said
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == ["--signal=TERM 7.0", "requeue 7"]
    assert "SIGTERM: saving and stopping" in said
    again = start()
    _, said = again.communicate(timeout=300)
    assert again.returncode == 0, said
    assert "resumed    from step" in said
    assert train(*arguments, "--save_every", "0", "--output_dir", str(tmp_path / "whole")) == 0
    assert_same_run(tmp_path / "whole", run)

"""How commands are started, and how signals reach them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from minimind.errors import ConfigError
from minimind.pipeline.process import Child, build_command, check_not_launched
from minimind.runtime.machine import process_state

WAITS = """
import os, pathlib, signal, sys, time
def end(number, frame):
    sys.exit(100 + number)
signal.signal(signal.SIGINT, end)
signal.signal(signal.SIGTERM, end)
pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
time.sleep(60)
"""


def wait_for(path: Path) -> int:
    """Gives the process id that a child wrote."""
    until = time.monotonic() + 30
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < until
        time.sleep(0.02)
    return int(path.read_text())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_once(tmp_path: Path, number: int):
    child, told = Child(), tmp_path / "pid"

    def send() -> None:
        wait_for(told)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    sender = threading.Thread(target=send)
    sender.start()
    assert child.run([sys.executable, "-c", WAITS, str(told)], {}) == 100 + number
    sender.join()
    assert child.interrupted
    assert signal.getsignal(number) is before
    assert child.run([sys.executable, "-c", "raise SystemExit(5)"], {}) == 130, "no more begins"


def test_a_childs_status_and_environment():
    code = "import os, sys; sys.exit(int(os.environ['STATUS']))"
    assert Child().run([sys.executable, "-c", code], {"STATUS": "7"}) == 7
    kill = "import os; os.kill(os.getpid(), 9)"
    assert Child().run([sys.executable, "-c", kill], {}) == -signal.SIGKILL


def test_a_command_ends_with_the_pipeline_that_started_it(tmp_path: Path):
    """By SIGTERM, after which a training saves."""
    told = tmp_path / "pid"
    code = (
        "import sys; from minimind.pipeline.process import Child; "
        "Child().run([sys.executable, '-c', *sys.argv[1:]], {})"
    )
    path = os.pathsep.join(part for part in sys.path if part)
    parent = subprocess.Popen(
        [sys.executable, "-c", code, WAITS, str(told)], env={**os.environ, "PYTHONPATH": path}
    )
    pid = wait_for(told)
    parent.kill()
    parent.wait()
    until = time.monotonic() + 30
    while process_state(pid):
        assert time.monotonic() < until
        time.sleep(0.02)


def test_the_launchers_commands(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def of(launcher: str, ranks: int) -> str:
        return " ".join(build_command("train", ["--stage", "sft"], launcher, ranks)[1:])

    assert of("python", 1) == "-m minimind train --stage sft"
    torchrun = "-m torch.distributed.run --standalone --nproc_per_node 4 -m minimind train"
    assert of("torchrun", 4) == f"{torchrun} --stage sft"
    assert of("deepspeed", 8).startswith("-m deepspeed.launcher.runner --master_port ")
    assert of("deepspeed", 8).endswith(" --num_accelerators 8 --module minimind train --stage sft")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,5")
    assert " --include localhost:2,3 --module minimind" in of("deepspeed", 2)


def test_a_launched_pipeline_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="a pipeline starts its ranks itself"):
        check_not_launched()

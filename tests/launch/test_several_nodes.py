"""Runs over two hosts: they train as one, and where one is cut off the other goes on alone."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from training_runs import TRAIN, WITHOUT_CLIPPING, Train, assert_same_run, read_losses
from two_hosts import TwoHosts

from minimind.runtime.ranks import free_port

pytestmark = pytest.mark.slow

_BIN = Path(sys.executable).parent
_LIMIT_S = 300


@pytest.fixture
def hosts() -> Iterator[TwoHosts]:
    hosts = TwoHosts()
    hosts.make()
    yield hosts
    hosts.remove()


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def by_torchrun(hosts: TwoHosts, host: int, tmp_path: Path) -> list[str]:
    command = [str(_BIN / "torchrun"), "--nnodes", "2", "--node_rank", str(host)]
    return [*command, "--nproc_per_node", "1", "--master_addr", hosts.addresses[0]]


def by_deepspeed(hosts: TwoHosts, host: int, tmp_path: Path) -> list[str]:
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("".join(f"{address} slots=1\n" for address in hosts.addresses))
    command = [str(_BIN / "deepspeed"), "--hostfile", str(hostfile), "--no_ssh"]
    return [*command, "--node_rank", str(host), "--master_addr", hosts.addresses[0]]


@pytest.mark.parametrize("launch", [by_torchrun, by_deepspeed])
@pytest.mark.faults("one of two hosts is cut off", "it is named; the other goes on alone")
def test_two_hosts_train_as_one_and_one_goes_on_without_the_other(
    train: Train,
    flags: list[str],
    tmp_path: Path,
    hosts: TwoHosts,
    started: list[subprocess.Popen[bytes]],
    launch: Callable[[TwoHosts, int, Path], list[str]],
):
    run = tmp_path / "run"
    # A constant rate, so that the number of steps changes none of them.
    flags = [*flags, *WITHOUT_CLIPPING, "--eval_every", "0", "--set", "min_lr_ratio=1"]
    endless = ["--max_steps", "100000", "--set", "rank_timeout_s=6", "--save_every", "2"]
    port = ["--master_port", str(free_port())]
    for host in range(2):
        command = [*launch(hosts, host, tmp_path), *port, str(TRAIN), *flags, *endless]
        started.append(hosts.start(host, command, tmp_path / f"{host}.log"))
    until = time.monotonic() + _LIMIT_S
    while not (run / "checkpoints" / "latest").exists():
        said = "".join((tmp_path / f"{host}.log").read_text() for host in range(2))
        assert time.monotonic() < until, said
        assert all(process.poll() is None for process in started), said
        time.sleep(0.2)
    hosts.cut()
    for process in started:
        assert process.wait(_LIMIT_S) != 0
    said = [(tmp_path / f"{host}.log").read_text() for host in range(2)]
    assert "error: rank 1 (process " in said[0]
    assert "of host host1) has given no sign of life for " in said[0]
    assert "its machine is down or cut off" in said[0]
    assert "rank 1: error: the store of the ranks" in said[1]
    for text in said:
        assert f"add --resume --output_dir {run}" in text
    steps = len(read_losses(run)) // 2 * 2 + 4
    alone = ["--max_steps", str(steps)]
    assert train("--resume", "--output_dir", str(run), *alone) == 0
    assert train(*flags, *alone, "--output_dir", str(tmp_path / "whole")) == 0
    assert_same_run(tmp_path / "whole", run)

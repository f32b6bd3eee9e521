"""How the ranks of a run meet, and nobody else."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from minimind.errors import ConfigError
from minimind.runtime import rendezvous
from minimind.runtime.ranks import Ranks, free_port
from minimind.runtime.rendezvous import open_store, run_identity

TWO = [Ranks(0, 0, 2), Ranks(1, 1, 2)]


@pytest.fixture(autouse=True)
def port(no_launcher: None, monkeypatch: pytest.MonkeyPatch) -> int:
    for name in ("TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RUN_ID", "CROSS_SIZE"):
        monkeypatch.delenv(name, raising=False)
    port = free_port()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    monkeypatch.setattr(rendezvous, "JOIN_S", 5)
    monkeypatch.setattr(rendezvous, "_ANSWER_S", 1)
    return port


@pytest.fixture
def taken(port: int) -> Iterator[int]:
    with socket.socket() as other:
        other.bind(("", port))
        other.listen()
        yield port


def test_the_ranks_of_a_run_share_a_store():
    first = open_store(TWO[0])
    second = open_store(TWO[1])
    first.set("key", "value")
    assert second.get("key") == b"value"


@pytest.mark.faults("a port that another run has", "refused; the flag is named")
def test_a_port_that_another_run_has_is_an_error_that_names_the_flag(taken: int):
    with pytest.raises(ConfigError, match=rf"port {taken}.*deepspeed --master_port \d+ \.\.\."):
        open_store(TWO[0])


def test_an_agents_store_is_waited_for_until_rank_0_has_come(
    port: int, monkeypatch: pytest.MonkeyPatch
):
    agent = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    monkeypatch.setattr(rendezvous, "_ANSWER_S", 0.2)
    with ThreadPoolExecutor() as pool:
        second = pool.submit(open_store, TWO[1])
        time.sleep(1)
        first = open_store(TWO[0])
        first.set("key", "value")
        assert second.result().get("key") == b"value"
    del agent


def test_one_rank_needs_no_port(taken: int):
    store = open_store(Ranks(0, 0, 1))
    store.set("key", "value")
    assert store.get("key") == b"value"


@pytest.mark.faults("a rank that meets the store of another run", "does not join it")
def test_a_rank_does_not_join_another_run(monkeypatch: pytest.MonkeyPatch):
    first = open_store(TWO[0])
    with monkeypatch.context() as other:
        other.setenv("CROSS_SIZE", "1")
        with pytest.raises(ConfigError, match=r"another run meet at 127.*--master_port"):
            open_store(TWO[1])
    with pytest.raises(ConfigError, match="another run meet"):
        open_store(Ranks(1, 1, 3))
    open_store(TWO[1])  # the right one is let in
    with pytest.raises(ConfigError, match="rank 1 has joined"):
        open_store(TWO[1])
    assert first.get("run").decode() == run_identity(TWO[0], {}, [])


def test_a_store_of_another_program_is_told_apart(port: int):
    other = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    with pytest.raises(ConfigError, match="no store of this run"):
        open_store(TWO[1])
    del other


def test_where_nobody_listens_that_is_said(port: int):
    with pytest.raises(ConfigError, match=rf"nobody answered at 127.0.0.1:{port}"):
        open_store(TWO[1])


def test_a_rank_may_come_before_the_store():
    stores: list[dist.Store] = []
    late = threading.Timer(0.5, lambda: stores.append(open_store(TWO[0])))
    late.start()
    open_store(TWO[1])
    late.join()


def test_what_tells_runs_apart(monkeypatch: pytest.MonkeyPatch):
    command = ["train.py", "--seed", "1"]

    def identity(*argv: str, **environment: str) -> str:
        return run_identity(TWO[0], environment, argv)

    assert identity(*command, "--local_rank=0", CROSS_SIZE="2") == identity(
        *command, "--local_rank=1", CROSS_SIZE="2"
    )
    assert identity("train.py", "--seed", "2", CROSS_SIZE="2") != identity(*command, CROSS_SIZE="2")
    assert identity(TORCHELASTIC_RUN_ID="a") != identity(TORCHELASTIC_RUN_ID="b")
    mine = identity(*command, CROSS_SIZE="1")
    assert identity(*command, CROSS_SIZE="1") == mine
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert identity(*command, CROSS_SIZE="1") != mine, "another launcher"

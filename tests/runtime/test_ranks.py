"""Ranks as the launchers' environment gives them."""

from __future__ import annotations

import os
import socket

import pytest

from minimind.errors import ConfigError
from minimind.runtime.ranks import Ranks, complete_environment, free_port, read_ranks

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


pytestmark = pytest.mark.usefixtures("no_launcher")


def test_one_rank_without_a_launcher():
    ranks = read_ranks()
    assert ranks == Ranks(rank=0, local_rank=0, world_size=1)
    assert ranks.is_main


def test_the_launchers_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert read_ranks() == Ranks(rank=5, local_rank=1, world_size=8)
    assert read_ranks(3).local_rank == 1, "the environment knows better than the flag"
    assert not read_ranks().is_main


def test_the_flag_where_the_environment_says_nothing():
    assert read_ranks(3).local_rank == 3


def test_a_bare_process_completes_its_environment():
    complete_environment(Ranks(0, 0, 1))
    assert [os.environ[name] for name in NAMES[:4]] == ["0", "0", "1", "127.0.0.1"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", int(os.environ["MASTER_PORT"])))


def test_a_launchers_environment_stays(monkeypatch: pytest.MonkeyPatch):
    given = ("5", "1", "8", "10.0.0.1", "29500")
    for name, value in zip(NAMES, given, strict=True):
        monkeypatch.setenv(name, value)
    complete_environment(read_ranks())
    assert tuple(os.environ[name] for name in NAMES) == given


def test_ports_are_free_different_and_no_outgoing_connections():
    ports = {free_port() for _ in range(20)}
    assert len(ports) > 10
    assert max(ports) < 32_768
    for port in ports:
        with socket.socket() as probe:
            probe.bind(("", port))


def test_a_taken_port_is_passed_over(monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as taken:
        taken.bind(("", free_port()))
        taken.listen()
        used = taken.getsockname()[1]
        with socket.socket() as probe:
            probe.bind(("", 0))
            other = probe.getsockname()[1]
        monkeypatch.setattr("random.SystemRandom.sample", lambda *_: [used, other])
        assert free_port() == other
        monkeypatch.setattr("random.SystemRandom.sample", lambda *_: [used])
        with pytest.raises(ConfigError, match="MASTER_PORT"):
            free_port()

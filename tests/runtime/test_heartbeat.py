"""Ranks that tell one another that they live, as threads of this process."""

from __future__ import annotations

import datetime
import logging
import time
from typing import Any, NoReturn

import pytest
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from minimind.errors import LostRankError, TrainingError
from minimind.runtime import heartbeat
from minimind.runtime.heartbeat import Heartbeat
from minimind.runtime.ranks import Ranks


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> TCPStore:
    """Gives all ranks one store, and one number of the run."""
    limit = datetime.timedelta(seconds=20)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=limit)
    monkeypatch.setattr(heartbeat, "_default_store", lambda: store)
    monkeypatch.setattr(heartbeat, "_runs", iter([0] * 10))
    monkeypatch.setattr(heartbeat, "_count_collectives", lambda: 1)
    monkeypatch.setattr(heartbeat, "_LEARNS_S", 1.0)
    return store


def end(status: int) -> NoReturn:
    raise AssertionError(f"a rank was lost: {status}")


def beat(rank: int) -> Heartbeat:
    return Heartbeat(Ranks(rank, rank, 2), 5.0, end=end)


def wait_until(heard: Any) -> None:
    until = time.monotonic() + 20
    while not heard():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_ranks_hear_of_one_another_and_of_the_end():
    with beat(0) as first:
        with beat(1):
            wait_until(lambda: len(first._watch.signs) == 2)
            wait_until(lambda: first._watch.signs[1].place.startswith("an unknown place"))
        wait_until(lambda: first._watch.signs[1].ended == "")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer"),
        dist.DistBackendError("NCCL error: remote process exited"),
    ],
)
def test_the_error_of_a_collective_becomes_one_that_names_the_rank(
    error: Exception, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.ERROR)
    with pytest.raises(LostRankError, match=r"rank 1 .* has failed: ValueError: its own\. Resume"):  # noqa: PT012, SIM117
        with beat(0) as first:
            first.advice = "Resume"
            with pytest.raises(ValueError, match="its own"), beat(1):  # noqa: PT012
                wait_until(lambda: len(first._watch.signs) == 2)
                raise ValueError("its own")
            with first.training():
                raise error
    assert caplog.text.count("rank 1 (process") == 1, "it is said once"


def test_the_others_read_why_a_rank_has_failed_before_it_ends():
    """Rank 0 may serve the store, which ends with its process."""
    with beat(1) as second:
        with pytest.raises(ValueError, match="its own"), beat(0):  # noqa: PT012
            wait_until(lambda: len(second._watch.signs) == 2)
            raise ValueError("its own")
        assert second._watch.signs[0].ended == "ValueError: its own"


def test_the_others_read_which_rank_is_lost_before_this_one_ends():
    """A rank that hangs may be the first to notice it: the others then say the same."""
    with beat(0) as first, beat(1) as second:
        wait_until(lambda: len(first._watch.signs) == 2)
        with pytest.raises(AssertionError, match="a rank was lost: 1"):
            second._stop_process("rank 1 hangs")
        assert first._watch.signs[1].lost == "rank 1 hangs"
        assert first._watch.find_gone(time.monotonic(), at_once=True) == "rank 1 hangs"


def test_a_checkpoint_that_a_lost_connection_spoiled_names_the_rank():
    error = TrainingError("the checkpoint of step 9 could not be written")
    error.__cause__ = RuntimeError("gloo: Connection closed by peer")
    with pytest.raises(LostRankError, match=r"rank 1 .* has failed"):  # noqa: PT012, SIM117
        with beat(0) as first:
            with pytest.raises(ValueError, match="its own"), beat(1):  # noqa: PT012
                wait_until(lambda: len(first._watch.signs) == 2)
                raise ValueError("its own")
            with first.training():
                raise error


def test_where_no_rank_is_known_to_be_lost_the_connection_is():
    with pytest.raises(LostRankError, match="connection to another rank is lost"), beat(0):
        raise RuntimeError("gloo: Connection reset by peer")


@pytest.mark.parametrize("error", [ValueError("gloo"), RuntimeError("a call timed out")])
def test_other_errors_stay_what_they_are(error: Exception):
    with pytest.raises(type(error), match=str(error)), beat(0):
        raise error


def test_one_rank_has_no_threads():
    with Heartbeat(Ranks(0, 0, 1), 5.0) as alone, alone.training():
        assert not alone._threads

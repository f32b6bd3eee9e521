"""Which rank is lost, by the signs that the ranks give."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from minimind.runtime.machine import boot_id, process_state
from minimind.runtime.rank_watch import STANDS_LONGER, RankWatch, Sign

LIMIT_S = 60.0


class Ranks:
    """Gives the signs of three ranks, two of them on this machine, to the watch of rank 0."""

    def __init__(self) -> None:
        self.now = 100.0
        self.states = {10: "S", 11: "R", 12: "S"}
        self.watch = RankWatch(0, LIMIT_S, "the store", state_of=lambda pid: self.states[pid])
        self.signs = {
            rank: Sign(
                beat=1,
                moves=1,
                collectives=7,
                place=f"place {rank}",
                host="b" if rank == 2 else "a",
                machine="b" if rank == 2 else "a",
                pid=10 + rank,
                local_rank=rank % 2,
            )
            for rank in range(3)
        }

    def live(self, seconds: float, *, silent: int | None = None, still: bool = False) -> None:
        """Lets time pass, in which all ranks but `silent` beat, and move unless `still`."""
        until = self.now + seconds
        while self.now < until:
            self.now += 2.0
            for rank, sign in self.signs.items():
                if rank != silent and sign.ended is None:
                    self.signs[rank] = replace(
                        sign, beat=sign.beat + 1, moves=sign.moves + (not still)
                    )
            self.watch.see(self.signs, self.now)

    def change(self, rank: int, **values: object) -> None:
        self.signs[rank] = replace(self.signs[rank], **values)  # type: ignore[arg-type]

    def judge(self) -> str:
        return self.watch.judge(self.now) or ""


@pytest.fixture
def ranks() -> Ranks:
    ranks = Ranks()
    ranks.watch.begin(ranks.now)
    ranks.live(10)
    return ranks


def test_ranks_that_move_are_left_alone(ranks: Ranks):
    ranks.live(10 * LIMIT_S)
    assert not ranks.judge()


def test_what_a_rank_has_said_before_it_ended_is_said_by_the_others(ranks: Ranks):
    ranks.change(1, ended="its own words", lost="rank 1 hangs at place 1")
    ranks.states[11] = ""
    assert not ranks.judge()
    ranks.live(20)
    assert ranks.judge() == "rank 1 hangs at place 1"


def test_a_rank_that_fails_itself_lets_the_others_end(ranks: Ranks):
    ranks.watch.fails = True
    ranks.change(2, ended="ValueError: its own")
    ranks.states[11] = ""
    ranks.live(20, silent=1)
    assert not ranks.judge()
    ranks.watch.fails = False
    assert not ranks.judge(), "it gets some seconds to end by itself"
    ranks.live(20, silent=1)
    assert ranks.judge()


def test_a_silent_rank_of_another_machine(ranks: Ranks):
    ranks.live(LIMIT_S - 4, silent=2)
    assert not ranks.judge()
    ranks.live(6, silent=2)
    assert "rank 2 (process 12 of host b) has given no sign of life for 6" in ranks.judge()
    assert "cut off" in ranks.judge()


@pytest.mark.parametrize(("state", "said"), [("T", "is stopped"), ("S", "hangs")])
def test_a_silent_rank_of_this_machine_is_looked_at(ranks: Ranks, state: str, said: str):
    ranks.states[11] = state
    ranks.live(LIMIT_S + 4, silent=1)
    assert ranks.judge().endswith(f"its process {said}")


def test_a_silent_store_is_not_blamed_on_the_ranks(ranks: Ranks):
    ranks.now += LIMIT_S - 1
    assert not ranks.judge()
    ranks.now += 2
    assert ranks.judge().startswith("the store has not answered for 61 s")


def test_a_dead_process_is_found_before_the_limit(ranks: Ranks):
    ranks.states[11] = ""
    assert not ranks.judge(), "it may still have said why"
    ranks.live(6, silent=1)
    assert "rank 1 (process 11 of host a) has died, last seen at place 1" in ranks.judge()


def test_the_reason_of_a_rank_that_failed(ranks: Ranks):
    ranks.change(2, ended="ValueError: of its own")
    ranks.live(2)
    assert not ranks.judge()
    ranks.live(6)
    assert ranks.judge() == "rank 2 (process 12 of host b) has failed: ValueError: of its own"


def test_a_rank_that_is_done_is_not_lost(ranks: Ranks):
    ranks.change(1, ended="")
    ranks.states[11] = ""
    ranks.live(2 * LIMIT_S)
    assert not ranks.judge()


def test_of_ranks_that_stand_still_the_one_behind_is_named(ranks: Ranks):
    for rank in (0, 2):
        ranks.change(rank, collectives=8)
    ranks.live(LIMIT_S + 4, still=True)
    assert ranks.judge().startswith("rank 1 ")
    assert "hangs at place 1" in ranks.judge()


def test_ranks_that_all_stand_in_one_collective(ranks: Ranks):
    ranks.live(LIMIT_S + 4, still=True)
    assert "none is behind the others (rank 0 at place 0, rank 1 at" in ranks.judge()


def test_one_rank_that_moves_excuses_all(ranks: Ranks):
    for _ in range(100):
        ranks.live(4, still=True)
        ranks.change(2, moves=ranks.signs[2].moves + 1)
    assert not ranks.judge()


def test_the_longest_pause_sets_the_limit(ranks: Ranks):
    ranks.live(40, still=True)
    ranks.live(4)
    ranks.live(STANDS_LONGER * 40 - 20, still=True)
    assert not ranks.judge()
    ranks.live(60, still=True)
    assert ranks.judge()


def test_standing_counts_in_training_alone(ranks: Ranks):
    ranks.watch.end()
    ranks.live(10 * LIMIT_S, still=True)
    assert not ranks.judge()


def test_a_process_that_was_held_up_itself_excuses_the_others(ranks: Ranks):
    ranks.now += 10 * LIMIT_S
    ranks.watch.excuse(ranks.now)
    assert not ranks.judge()
    ranks.live(2 * LIMIT_S)
    assert not ranks.judge()


def test_one_rank_of_a_machine_reports(ranks: Ranks):
    assert ranks.watch.reports
    ranks.watch.rank = 1
    assert not ranks.watch.reports
    ranks.states[10] = "T"
    assert ranks.watch.reports
    ranks.watch.rank = 2
    assert ranks.watch.reports


def test_a_sign_survives_json():
    sign = Ranks().signs[1]
    assert Sign(**json.loads(sign.to_json())) == sign


def test_states_of_processes():
    assert process_state(os.getpid()) in ("R", "S")
    child = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.DEVNULL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process_state(child.pid) == "", "it has ended, though nobody has asked for its status"
    child.wait()
    assert process_state(child.pid) == ""
    assert boot_id() == boot_id()

"""Judges from the ranks' signs of life whether one of them is lost."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

from minimind.runtime.machine import process_state

STANDS_LONGER = 10
"""A run counts as hung when all ranks have stood still for this many times the longest pause that
ended by itself, and for the time limit at least."""
_TELLS_S = 5.0
"""How long the other ranks have to end by themselves after one has failed or died."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """Holds a rank's sign of life, which the rank writes again and again for the others."""

    beat: int
    """How many signs this rank has written."""
    moves: int
    """How often the main thread was found at another place in the code than before."""
    collectives: int
    """How many collectives the main thread has entered."""
    place: str
    """The place of the main thread in the code, as file:line (function)."""
    host: str
    machine: str
    """An id shared by processes that see one another's process ids."""
    pid: int
    local_rank: int
    ended: str | None = None
    """Why this rank has left the run: "" without an error, None while it takes part."""
    lost: str | None = None
    """The report of a lost rank that this rank has made, perhaps about itself; None without one."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass(slots=True)
class RankWatch:
    """Follows the signs of all ranks on one of them, `rank`. Times are seconds of this process's
    monotonic clock."""

    rank: int
    limit_s: float
    server: str
    """Names the process that serves the store, for the message where the store no longer answers.
    """
    state_of: Callable[[int], str] = process_state
    """Gives the state of a process of this machine ("" where it is gone)."""
    signs: dict[int, Sign] = field(default_factory=dict)
    fails: bool = False
    """Whether this rank is about to end with an error; the others may then end too."""
    _heard: dict[int, float] = field(default_factory=dict)
    """When each rank's newest sign was first seen."""
    _answered: float | None = None
    """When the store last answered."""
    _moved: float | None = None
    """When a rank was last seen to move; None outside training."""
    _longest_pause_s: float = 0.0
    _left: dict[int, float] = field(default_factory=dict)
    """When each rank was found to have left the run by an error."""

    def begin(self, now: float) -> None:
        """Begins to count pauses of all ranks: training has started."""
        self._moved, self._longest_pause_s = now, 0.0

    def end(self) -> None:
        self._moved = None

    def excuse(self, now: float) -> None:
        """Counts all times from now: this process itself was held up (a suspended machine)."""
        self._heard = dict.fromkeys(self._heard, now)
        self._answered = now if self._answered is not None else None
        self._moved = now if self._moved is not None else None

    def see(self, signs: Mapping[int, Sign], now: float) -> None:
        """Takes the signs that the store holds."""
        self._answered = now
        for rank, sign in signs.items():
            before = self.signs.get(rank)
            if before is None or sign.beat != before.beat:
                self._heard[rank] = now
            has_moved = before is None or sign.moves != before.moves
            if has_moved and self._moved is not None:
                self._longest_pause_s = max(self._longest_pause_s, now - self._moved)
                self._moved = now
            self.signs[rank] = sign

    def judge(self, now: float) -> str | None:
        """Names a lost rank, and says why it counts as lost; gives None where none is."""
        return (
            (None if self.fails else self.find_gone(now))
            or self._find_silent()
            or self._find_unanswered(now)
            or self._find_standing(now)
        )

    def find_gone(self, now: float, *, at_once: bool = False) -> str | None:
        """Finds a rank that has ended. Unless the answer is wanted `at_once`, that rank first gets
        some seconds to report its error, and this rank to notice the failure by its own collective.
        """
        for rank, sign in self.signs.items():
            if rank == self.rank or sign.ended == "":
                continue
            if sign.ended is None and not (self._is_here(sign) and not self.state_of(sign.pid)):
                continue
            since = self._left.setdefault(rank, now)
            if at_once or now - since >= _TELLS_S:
                if sign.lost:
                    return sign.lost
                if sign.ended:
                    return f"{self._name(rank)} has failed: {sign.ended}"
                return (
                    f"{self._name(rank)} has died, last seen at {sign.place}: it was killed or "
                    "crashed (where memory ran out, the kernel's log says so)"
                )
        return None

    def _find_silent(self) -> str | None:
        for rank, sign in self.signs.items():
            # While the store does not answer, no rank's signs can be read.
            silent_s = (self._answered or 0.0) - self._heard[rank]
            if rank == self.rank or sign.ended is not None or silent_s < self.limit_s:
                continue
            why = "its machine is down or cut off, or its process is stopped"
            if self._is_here(sign):
                stopped = self.state_of(sign.pid) in ("T", "t")
                why = "its process is stopped" if stopped else "its process hangs"
            return f"{self._name(rank)} has given no sign of life for {silent_s:.0f} s: {why}"
        return None

    def _find_unanswered(self, now: float) -> str | None:
        if self._answered is None or (silent_s := now - self._answered) < self.limit_s:
            return None
        return (
            f"{self.server} has not answered for {silent_s:.0f} s: its process is stopped or gone, "
            "or its machine is down or cut off"
        )

    def _find_standing(self, now: float) -> str | None:
        if self._moved is None or not self.signs:
            return None
        limit_s = max(self.limit_s, STANDS_LONGER * self._longest_pause_s)
        if (still_s := now - self._moved) < limit_s:
            return None
        taking_part = {rank: sign for rank, sign in self.signs.items() if sign.ended is None}
        fewest = min(sign.collectives for sign in taking_part.values())
        behind = [rank for rank, sign in taking_part.items() if sign.collectives == fewest]
        if len(behind) < len(taking_part):
            rank = behind[0]
            return (
                f"{self._name(rank)} hangs at {self.signs[rank].place}: nothing has moved for "
                f"{still_s:.0f} s, and the other ranks wait for it"
            )
        places = ", ".join(f"rank {r} at {s.place}" for r, s in taking_part.items())
        return (
            f"no rank has moved for {still_s:.0f} s, and none is behind the others ({places}): the "
            "links between them may be down"
        )

    def _is_here(self, sign: Sign) -> bool:
        mine = self.signs.get(self.rank)
        return mine is not None and sign.machine == mine.machine

    def _name(self, rank: int) -> str:
        sign = self.signs[rank]
        return f"rank {rank} (process {sign.pid} of host {sign.host})"

    @property
    def reports(self) -> bool:
        """Tells whether this rank reports to the user: it has the lowest local rank of those on its
        machine whose process is there and not stopped."""
        mine = self.signs.get(self.rank)
        if mine is None:
            return True
        return not any(
            sign.local_rank < mine.local_rank
            and sign.ended is None
            and self._is_here(sign)
            and self.state_of(sign.pid) not in ("", "T", "t")
            for sign in self.signs.values()
        )
